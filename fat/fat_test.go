package fat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
)

// read is a volume's files by their path, as a driver finds them: by nothing but what
// the boot sector says.
func read(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	le := binary.LittleEndian
	sector, reserved := int(le.Uint16(b[11:])), int(le.Uint16(b[14:]))
	cluster := int(b[13]) * sector
	total := int(le.Uint16(b[19:])) + int(le.Uint32(b[32:]))
	table := b[reserved*sector:][:int(le.Uint16(b[22:]))*sector]
	root := (reserved + int(b[16])*int(le.Uint16(b[22:]))) * sector
	data := root + int(le.Uint16(b[17:]))*entrySize
	clusters := (total*sector - data) / cluster
	if total*sector != len(b) || clusters > maxClusters || (clusters+2)*3/2 > len(table) {
		t.Fatalf("%d sectors of %d in %d bytes, %d clusters, a table of %d bytes", total, sector, len(b), clusters, len(table))
	}
	follow := func(c int) (all []byte) {
		for c != 0 && c != 0xfff {
			if c < 2 || c >= clusters+2 || len(all) > len(b) {
				t.Fatalf("cluster %d of %d", c, clusters)
			}
			all = append(all, b[data+(c-2)*cluster:][:cluster]...)
			at := int(le.Uint16(table[c*3/2:]))
			c = at >> (4 * (c % 2)) & 0xfff
		}
		return all
	}
	files := map[string][]byte{}
	var walk func(path string, list []byte)
	walk = func(path string, list []byte) {
		long := ""
		for ; len(list) > 0 && list[0] != 0; list = list[entrySize:] {
			switch e := list[:entrySize]; {
			case e[11] == attrLongName:
				part := ""
				for _, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
					if u := le.Uint16(e[at:]); u != 0 && u != 0xffff {
						part += string(rune(u))
					}
				}
				long = part + long
			case e[11] == attrLabel || e[0] == '.':
			default:
				name := strings.TrimSuffix(strings.TrimRight(string(e[:8]), " ")+"."+strings.TrimRight(string(e[8:11]), " "), ".")
				if long != "" {
					name, long = long, ""
				}
				content := follow(int(le.Uint16(e[26:])))
				if e[11] == attrFolder {
					walk(path+name+"/", content)
				} else {
					files[path+name] = content[:le.Uint32(e[28:])]
				}
			}
		}
	}
	walk("", b[root:data])
	return files
}

func TestVolumeHoldsItsFiles(t *testing.T) {
	for seed := range uint64(60) {
		r := rand.New(rand.NewPCG(seed, 1))
		s := []Shape{{"RECAST", 512, 2048, 2048}, {"cidata", 4096, 4096, 1 << 20}}[seed%2]
		var files []File
		want := map[string][]byte{}
		for i, name := range []string{"EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/autoexec.ipxe", "EFI/a name of thirty characters", "A.B", "meta-data", "user-data", "EMPTY"}[:r.IntN(8)] {
			data := bytes.Repeat([]byte{byte(i + 1)}, r.IntN(1<<r.IntN(24)))
			if name == "EMPTY" {
				data = nil
			}
			files, want[name] = append(files, File{name, data}), data
		}
		v, err := New(s, files)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		end := int64(0)
		for _, e := range v.Extents {
			if e.At < end {
				t.Fatalf("seed %d: what stands at %d overlaps what ends at %d", seed, e.At, end)
			}
			end = e.At + int64(len(e.Data))
		}
		if v.Size%int64(s.Multiple) != 0 || end > v.Size {
			t.Fatalf("seed %d: %d bytes used of %d", seed, end, v.Size)
		}
		if got := read(t, v.Bytes()); !maps.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("seed %d: %d files come back as %d", seed, len(want), len(got))
		}
	}
}

func TestWhatDoesNotFitIsRefused(t *testing.T) {
	many := make([]File, 200)
	for i := range many {
		many[i] = File{Name: fmt.Sprintf("EFI/%d", i)}
	}
	s := Shape{"RECAST", 512, 2048, 2048}
	for want, files := range map[string][]File{
		"do not fit 64 MiB":      {{"A", make([]byte, maxSize)}},
		"do not fit a directory": many,
	} {
		if _, err := New(s, files); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

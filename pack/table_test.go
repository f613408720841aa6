package pack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// diskWith is what stands on a disk of size bytes when everything is written:
// 0xA5 wherever nothing has to be.
func diskWith(t *testing.T, img []byte, m *Manifest, table *Table, size int64) []byte {
	t.Helper()
	disk := bytes.Repeat([]byte{0xa5}, int(size))
	for i := range m.Chunks {
		src := img[i*ChunkSize:][:m.ChunkLen(i)]
		if c, ok := table.Chunks[i]; ok {
			if !bytes.Equal(c.Image, src) {
				t.Fatalf("chunk %d: the image's form is not the image's", i)
			}
			src = c.Disk
		}
		copy(disk[i*ChunkSize:], src)
	}
	body := bytes.Clone(disk)
	copy(disk[size-MiB:], table.Last)
	copy(disk, table.First)
	for i := range m.Chunks {
		at := i * ChunkSize
		if c, ok := table.Chunks[i]; !ok && !bytes.Equal(disk[at:at+m.ChunkLen(i)], body[at:at+m.ChunkLen(i)]) {
			t.Fatalf("first or last MiB changes chunk %d, which is not listed", i)
		} else if ok && !bytes.Equal(disk[at:at+m.ChunkLen(i)], c.Disk) {
			t.Fatalf("first or last MiB contradicts chunk %d", i)
		} else if late := !bytes.Equal(body[at:at+1], disk[at:at+1]); late && !c.Late {
			t.Fatalf("chunk %d is not late", i)
		}
	}
	return disk
}

func TestRenderedTableFitsTheDisk(t *testing.T) {
	for _, bs := range []int{512, 4096} {
		for _, size := range []int64{6 * MiB, 9*MiB + 4096} {
			img := testImage(t, size, bs)
			m, p := packed(t, img, WriteOptions{})
			if m.BlockSize != bs {
				t.Fatalf("block size %d seen as %d", bs, m.BlockSize)
			}
			for _, config := range []*ConfigPart{nil, {Size: 3*MiB + 5, Label: "CIDATA"}} {
				least := m.MinDiskSize(config)
				for _, diskSize := range []int64{least, least + 4096, least + MiB/2, least + MiB, least + 5*MiB - 4096} {
					if diskSize%int64(bs) != 0 {
						continue
					}
					name := fmt.Sprintf("%d/%d on %d, config %v", bs, size, diskSize, config != nil)
					table, err := RenderTable(m, chunksOf(m, p), diskSize, bs, config)
					if err != nil {
						t.Fatalf("%s: %v", name, err)
					}
					disk := diskWith(t, img, m, table, diskSize)
					checkTable(t, name, disk, img, m, table, config)
				}
				if _, err := RenderTable(m, chunksOf(m, p), least-int64(bs), bs, config); !errors.Is(err, ErrDiskTooSmall) {
					t.Errorf("%d/%d: a block too small: %v", bs, size, err)
				}
			}
		}
	}
}

func checkTable(t *testing.T, name string, disk, img []byte, m *Manifest, table *Table, config *ConfigPart) {
	t.Helper()
	size, bs := int64(len(disk)), m.BlockSize
	g, err := parseGPT(disk[:MiB])
	if err != nil || g == nil {
		t.Fatalf("%s: %v", name, err)
	}
	layout, err := g.layout(size)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	want := m.Layout
	if config != nil {
		want.Partitions = append(append([]Partition(nil), want.Partitions...), Partition{
			Number: 3, Type: TypeBasicData.String(), GUID: layout.Partitions[2].GUID, Name: "CIDATA",
			Start: table.ConfigStart, End: table.ConfigStart + table.ConfigSize,
		})
		if end := table.ConfigStart + table.ConfigSize; table.ConfigStart%MiB != 0 || table.ConfigStart < m.Size ||
			end > size-MiB || end <= size-3*MiB {
			t.Errorf("%s: config partition from %d to %d", name, table.ConfigStart, end)
		}
	}
	if diff := cmp.Diff(want, layout); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
	if g.alternate != uint64(size)/uint64(bs)-1 || g.lastUsable != g.alternate-uint64(blocksFor(16384, bs))-1 {
		t.Errorf("%s: backup at block %d, last usable %d", name, g.alternate, g.lastUsable)
	}
	// The backup is the primary's twin.
	start, end := g.backup()
	if end != size || !bytes.Equal(disk[start:][:len(g.entries)], g.entries) || !bytes.Equal(disk[end-int64(bs):], g.backupHeader()) {
		t.Errorf("%s: the backup table is wrong", name)
	}
	// Partition bytes are the image's to the last one, and of the image's own
	// backup table nothing is left.
	for _, p := range m.Layout.Partitions {
		if !bytes.Equal(disk[p.Start:p.End], img[p.Start:p.End]) {
			t.Errorf("%s: partition %d changed", name, p.Number)
		}
	}
	for i := int64(512); i < size; i += 512 {
		if string(disk[i:i+8]) == gptSignature && i != int64(bs) && i != size-int64(bs) {
			t.Errorf("%s: a GPT header at byte %d", name, i)
		}
	}
	imageBackup := m.Size - int64(1+blocksFor(16384, bs))*int64(bs)
	for i := imageBackup; i < min(m.Size, start); i++ {
		if disk[i] != 0 {
			t.Fatalf("%s: byte %d of the image's own backup table is left", name, i)
		}
	}
	if !bytes.Equal(disk[:446], img[:446]) || !bytes.Equal(disk[510:512], img[510:512]) {
		t.Errorf("%s: boot code changed", name)
	}
}

func TestRenderedTableDependsOnItsArgumentsAlone(t *testing.T) {
	m, p := packed(t, testImage(t, 6*MiB, 512), WriteOptions{})
	render := func(disk int64, c *ConfigPart) *Table {
		t.Helper()
		table, err := RenderTable(m, chunksOf(m, p), disk, 512, c)
		if err != nil {
			t.Fatal(err)
		}
		return table
	}
	c := &ConfigPart{Size: MiB, Label: "CIDATA"}
	a := render(64*MiB, c)
	if !reflect.DeepEqual(a, render(64*MiB, c)) {
		t.Error("rendered twice, two tables")
	}
	for name, other := range map[string]*Table{
		"disk size": render(65*MiB, c), "config size": render(64*MiB, &ConfigPart{Size: 2 * MiB, Label: "CIDATA"}),
		"label": render(64*MiB, &ConfigPart{Size: MiB, Label: "config-2"}), "no config": render(64*MiB, nil),
		"GUID": render(64*MiB, &ConfigPart{Size: MiB, Label: "CIDATA", GUID: MustGUID(partA)}),
	} {
		if a.Digest == other.Digest {
			t.Errorf("another %s gives the same digest", name)
		}
	}
	l, _, err := ParseLayout(a.First, 64*MiB)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := l.Partitions[2].GUID, deriveGUID(MustGUID(testDisk), "recast config partition").String(); got != want {
		t.Errorf("config partition %s, want %s", got, want)
	}
	if got := l.Partitions[2].GUID; got[14] != '8' || !strings.ContainsRune("89AB", rune(got[19])) {
		t.Errorf("config partition %s is no version 8 GUID", got)
	}
}

func TestRenderRefusesWhatDoesNotFit(t *testing.T) {
	img := testImage(t, 6*MiB, 512)
	m, p := packed(t, img, WriteOptions{})
	mbrOnly := make([]byte, 4*MiB)
	copy(mbrOnly[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 16, 0, 0})
	mbrOnly[510], mbrOnly[511] = 0x55, 0xaa
	mm, mp := packed(t, mbrOnly, WriteOptions{})
	config := &ConfigPart{Size: MiB, Label: "CIDATA"}
	for name, c := range map[string]struct {
		m      *Manifest
		p      []byte
		disk   int64
		bs     int
		config *ConfigPart
		is     error
		says   string
	}{
		"too small":         {m, p, 5 * MiB, 512, nil, ErrDiskTooSmall, "5242880 bytes, the image needs 6291456"},
		"no room for it":    {m, p, 7 * MiB, 512, config, ErrDiskTooSmall, "config partition needs 8388608"},
		"block size":        {m, p, 64 * MiB, 4096, nil, ErrBlockSize, "blocks of 512 bytes, the disk has 4096"},
		"half a block":      {m, p, 64*MiB + 100, 512, nil, ErrBlockSize, "no whole number"},
		"MBR":               {mm, mp, 64 * MiB, 512, config, ErrNoConfig, "MBR"},
		"empty volume":      {m, p, 64 * MiB, 512, &ConfigPart{}, ErrNoConfig, "0 bytes"},
		"long label":        {m, p, 64 * MiB, 512, &ConfigPart{Size: MiB, Label: strings.Repeat("x", 37)}, nil, "36"},
		"chunk 0 is broken": {m, nil, 64 * MiB, 512, nil, nil, "chunk 0"},
	} {
		_, err := RenderTable(c.m, chunksOf(c.m, c.p), c.disk, c.bs, c.config)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	table, err := RenderTable(mm, chunksOf(mm, mp), 64*MiB, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(table.First, mbrOnly[:MiB]) || !isZero(table.Last) {
		t.Error("an image with an MBR does not keep its first MiB")
	}
}

func TestLayoutErrors(t *testing.T) {
	img := testImage(t, 6*MiB, 512)
	for name, c := range map[string]struct {
		at   int
		says string
	}{
		"header":   {512 + 40, "header checksum"},
		"entries":  {1024 + 60, "entries checksum"},
		"checksum": {512 + 16, "header checksum"},
	} {
		b := bytes.Clone(img)
		b[c.at] ^= 1
		if _, _, err := ParseLayout(b[:MiB], int64(len(b))); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	overlap := []Partition{
		{Type: TypeLinux.String(), GUID: partA, Start: MiB, End: 3 * MiB},
		{Type: TypeLinux.String(), GUID: partB, Start: 2 * MiB, End: 4 * MiB},
	}
	if _, _, err := FormatGPT(8*MiB, 512, MustGUID(testDisk), overlap); err == nil || !strings.Contains(err.Error(), "overlap") {
		t.Errorf("overlap: %v", err)
	}
	if l, bs, err := ParseLayout(make([]byte, MiB), MiB); err != nil || l.Scheme != SchemeNone || bs != 512 {
		t.Errorf("blank: %v %v %v", l, bs, err)
	}
}

func TestHybridMBRStays(t *testing.T) {
	img := testImage(t, 6*MiB, 512)
	copy(img[446+16:], []byte{0, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 1, 0, 0})
	m, p := packed(t, img, WriteOptions{})
	table, err := RenderTable(m, chunksOf(m, p), 64*MiB, 512, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(table.First[:512], img[:512]) {
		t.Error("a hybrid MBR was changed")
	}
}

// sgdisk is the judge of what we render, and the maker of what we read.
func TestSgdiskAgrees(t *testing.T) {
	sgdisk, err := exec.LookPath("sgdisk")
	if err != nil {
		t.Skip("needs sgdisk (apt-get install gdisk)")
	}
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(sgdisk, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("sgdisk %v: %v\n%s", args, err, out)
		}
		return string(out)
	}
	name := writeFile(t, make([]byte, 20*MiB))
	run("-a1", "--disk-guid="+testDisk, "-n1:34:2047", "-t1:EF02", "-c1:bios boot", "-n2:2048:+4M", "-t2:EF00", "-c2:ESP",
		"-n4:0:0", "-t4:8304", "-c4:root", "-A4:set:60", name)
	img, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	m, p := packed(t, img, WriteOptions{})
	names := []string{}
	for _, q := range m.Layout.Partitions {
		names = append(names, fmt.Sprintf("%d %s %s %d %d %x", q.Number, q.Type, q.Name, q.Start/512, q.End/512-1, q.Attributes))
	}
	last := m.Layout.Partitions[2].End/512 - 1
	want := []string{
		"1 " + TypeBIOSBoot.String() + " bios boot 34 2047 0",
		"2 " + TypeESP.String() + " ESP 2048 10239 0",
		fmt.Sprintf("4 %s root 10240 %d 1000000000000000", TypeLinuxRootX, last),
	}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("layout (-want +got):\n%s", diff)
	}
	for _, diskSize := range []int64{20 * MiB, 20*MiB + 512, 21 * MiB, 30*MiB + 512*7, 64 * MiB} {
		for _, config := range []*ConfigPart{nil, {Size: 2 * MiB, Label: "CIDATA"}} {
			if diskSize < m.MinDiskSize(config) {
				continue
			}
			table, err := RenderTable(m, chunksOf(m, p), diskSize, 512, config)
			if err != nil {
				t.Fatal(err)
			}
			disk := writeFile(t, diskWith(t, img, m, table, diskSize))
			out := run("-v", disk)
			if !strings.Contains(out, "No problems found") {
				t.Errorf("disk of %d bytes:\n%s", diskSize, out)
			}
			if config == nil {
				continue
			}
			out = run("-i5", disk)
			for _, s := range []string{"Partition name: 'CIDATA'", fmt.Sprintf("First sector: %d ", table.ConfigStart/512), "Microsoft basic data"} {
				if !strings.Contains(out, s) {
					t.Errorf("disk of %d bytes: no %q in:\n%s", diskSize, s, out)
				}
			}
		}
	}
}

func FuzzLayout(f *testing.F) {
	for _, bs := range []int{512, 4096} {
		img := testImage(f, 6*MiB, bs)
		f.Add(img[:6*4096], int64(6*MiB), true)
	}
	f.Add([]byte("no table"), int64(512), false)
	f.Fuzz(func(t *testing.T, head []byte, size int64, mend bool) {
		if size <= 0 || size > 64*MiB || len(head) > MiB {
			return
		}
		img := make([]byte, size)
		copy(img, head)
		if mend { // past the checksums, to what they protect
			for _, bs := range []int{512, 4096} {
				mendGPT(img, bs)
			}
		}
		first := img[:min(MiB, size)]
		l, bs, err := ParseLayout(first, size)
		if err != nil {
			return
		}
		if err := l.check(size); err != nil {
			t.Fatal(err)
		}
		m := &Manifest{Size: size, BlockSize: bs, Layout: l, Chunks: make([]Chunk, NumChunks(size))}
		chunk := func(i int) ([]byte, error) { return img[i*ChunkSize:][:m.ChunkLen(i)], nil }
		for _, config := range []*ConfigPart{nil, {Size: MiB, Label: "CIDATA"}} {
			diskSize := (m.MinDiskSize(config) + 4095) / 4096 * 4096
			table, err := RenderTable(m, chunk, diskSize, bs, config)
			if err != nil {
				if l.Scheme == SchemeGPT && !strings.Contains(err.Error(), "entries of the partition table are taken") {
					t.Fatalf("a table that was read cannot be rendered: %v", err)
				}
				continue
			}
			if l.Scheme != SchemeGPT {
				continue
			}
			again, _, err := ParseLayout(table.First, diskSize)
			if err != nil {
				t.Fatalf("what was rendered cannot be read: %v", err)
			}
			if n := len(again.Partitions) - len(l.Partitions); n != 0 && config == nil || n != 1 && config != nil {
				t.Fatalf("%d partitions became %d", len(l.Partitions), len(again.Partitions))
			}
		}
	})
}

package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"recast/pack"
)

// verityCapture is a tree that veritysetup 2.6.1 made, with a salt or none, of blocks that
// verityData gives.
type verityCapture struct {
	name, options  string
	blocks, size   int // of data
	levels         int // of the tree
	root           string
	badSum, badTop int // a byte in a digest of the data, and one in the highest block
}

var verityCaptures = []verityCapture{
	{"4096", "--salt abab…", 200, 4096, 2, "59b51e62674f164d32ab83dce684eda162cd846f36e9abc80863296c35f43510", 8192 + 40, 4096 + 5},
	{"1024", "--salt=- --hash sha512 --data-block-size 1024 --hash-block-size 512", 300, 1024, 3,
		"15da919e06783274e5651e039071d94336a682db45aa64eaaa4e313a85e3c8ed2223def55dc2f49d55d4436bd74d98e3c5705bdf8407aa2ffffaf0b28985302d", 512*7 + 70, 512 + 5},
}

// verityData repeats in each block a number that no other has.
func verityData(c verityCapture) (b []byte) {
	for i := range c.blocks {
		for range c.size / 8 {
			b = binary.LittleEndian.AppendUint64(b, uint64(i)*2654435761)
		}
	}
	return b
}

func (c verityCapture) tree(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/verity-" + c.name + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// verityImage has an EFI system partition, a root, another partition, and the root's tree.
func verityImage(t testing.TB, esp, root, other, tree []byte) []byte {
	t.Helper()
	var parts []pack.Partition
	at := int64(pack.MiB)
	bodies := [][]byte{esp, root, other, tree}
	for i, body := range bodies {
		size := (int64(len(body)) + pack.MiB - 1) / pack.MiB * pack.MiB
		parts = append(parts, pack.Partition{Type: pack.TypeLinux.String(), GUID: fmt.Sprintf("AAAAAAAA-2222-4333-8444-55555555555%d", i),
			Name: []string{"esp", "root", "other", "root-verity"}[i], Start: at, End: at + max(size, pack.MiB)})
		at += max(size, pack.MiB)
	}
	size := at + pack.MiB
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"), parts)
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-pack.MiB:], last)
	for i, p := range parts {
		copy(img[p.Start:], bodies[i])
	}
	return img
}

func TestATreeOfVeritysetupProvesItsData(t *testing.T) {
	for _, c := range verityCaptures {
		t.Run(c.options, func(t *testing.T) {
			data, tree := verityData(c), c.tree(t)
			esp := make([]byte, 9<<20) // the root hash stands in two of its spans
			copy(esp, "FAT")
			copy(esp[spanSize-10:], "roothash="+c.root)
			s := open(t, t.TempDir(), Options{})
			img := verityImage(t, esp, data, nil, tree)
			info := add(t, s, img)
			want := []Verity{
				{Tree: 4, Data: 1, RootHash: c.root, Wrong: "the block of the partition at byte 0 is another one"},
				{Tree: 4, Data: 2, RootHash: c.root, Named: []int{1}},
				{Tree: 4, Data: 3, RootHash: c.root, Wrong: fmt.Sprintf("the block of the partition at byte %d is another one", c.size)},
			}
			if !equalVerity(info.Verity, want) {
				t.Errorf("found %+v, want %+v", info.Verity, want)
			}
			// Whoever reads the record later finds the same.
			if kept, err := s.Info(info.Digest); err != nil || !equalVerity(kept.Verity, want) {
				t.Errorf("kept %+v, %v", kept.Verity, err)
			}
		})
	}
}

func equalVerity(a, b []Verity) bool {
	return slices.EqualFunc(a, b, func(a, b Verity) bool { return fmt.Sprint(a) == fmt.Sprint(b) })
}

// One byte anywhere, in the data or the tree, and it proves nothing.
func TestATreeThatIsNotTheDatasIsFound(t *testing.T) {
	for _, c := range verityCaptures {
		for what, tt := range map[string]struct {
			change func(data, tree []byte)
			want   string
		}{
			"the first block":   {func(data, _ []byte) { data[1024/2] ^= 1 }, "the block of the partition at byte 0 is another one"},
			"the last block":    {func(data, _ []byte) { data[len(data)-1] ^= 1 }, fmt.Sprintf("at byte %d is another one", (c.blocks-1)*c.size)},
			"two blocks":        {func(data, _ []byte) { data[5*c.size], data[9*c.size] = 1, 1 }, fmt.Sprintf("at byte %d is another one", 5*c.size)},
			"a digest":          {func(_, tree []byte) { tree[c.badSum] ^= 1 }, "is not what the one above it says"},
			"a digest above":    {func(_, tree []byte) { tree[c.badTop] ^= 1 }, "is not what the one above it says"},
			"the salt":          {func(_, tree []byte) { tree[80], tree[88] = 32, tree[88]^1 }, "is not what the one above it says"},
			"a block more":      {func(_, tree []byte) { tree[72]++ }, fmt.Sprintf("at byte %d is another one", c.blocks*c.size)},
			"another algorithm": {func(_, tree []byte) { copy(tree[32:], "sha1\x00\x00\x00") }, `its dm-verity tree is of "sha1": want sha256 or sha512`},
		} {
			t.Run(c.name+" "+what, func(t *testing.T) {
				data, tree := verityData(c), c.tree(t)
				tt.change(data, tree)
				info := add(t, open(t, t.TempDir(), Options{}), verityImage(t, nil, data, nil, tree))
				for _, v := range info.Verity {
					if v.Wrong == "" {
						t.Errorf("%+v", v)
					}
					if (v.Data == 2 || v.Data == 0) && !strings.Contains(v.Wrong, tt.want) {
						t.Errorf("%+v, want %q", v, tt.want)
					}
				}
				if len(info.Verity) == 0 {
					t.Error("no tree was found")
				}
			})
		}
	}
}

func TestAnImageWithoutATreeIsSaidToHaveNone(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	info := add(t, s, disk(t, 4, 1))
	if info.Verity == nil || len(info.Verity) != 0 {
		t.Errorf("%+v", info.Verity)
	}
	// One that an older recast added is looked at when it is added again.
	s.change.Lock()
	info.Verity = nil
	err := s.writeRecord(info)
	s.put(info)
	s.change.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if again := add(t, s, disk(t, 4, 1)); again.Verity == nil {
		t.Error("it was not looked at")
	}
}

func TestASuperblockThatCannotBeIsRefused(t *testing.T) {
	c := verityCaptures[0]
	good := c.tree(t)[:veritySuper]
	const room = 16 << 10 // all of it
	v, err := parseVerity(good, room)
	if err != nil || len(v.levels) != c.levels+1 || v.dataBlock != 4096 || v.hashBlock != 4096 || len(v.salt) != 32 || v.levels[0].blocks != 200 || v.levels[1].start != 8192 || v.levels[2].start != 4096 {
		t.Fatalf("%+v, %v", v, err)
	}
	le := binary.LittleEndian
	for want, change := range map[string]func(b []byte){
		ErrNoTree.Error():                         func(b []byte) { b[0] = 'V' },
		"has version 2 and hash type 1":           func(b []byte) { b[8] = 2 },
		"has version 1 and hash type 0":           func(b []byte) { b[12] = 0 },
		`is of "crc32c"`:                          func(b []byte) { copy(b[32:], "crc32c\x00") },
		"has blocks of 0 bytes":                   func(b []byte) { le.PutUint32(b[64:], 0) },
		"has blocks of 4095 bytes":                func(b []byte) { le.PutUint32(b[68:], 4095) },
		"has blocks of 256 bytes":                 func(b []byte) { le.PutUint32(b[68:], 256) },
		"has blocks of 2147483648 bytes":          func(b []byte) { le.PutUint32(b[64:], 1<<31) },
		"has a salt of 257 bytes":                 func(b []byte) { le.PutUint16(b[80:], 257) },
		"is of 0 blocks":                          func(b []byte) { le.PutUint64(b[72:], 0) },
		"is of 1 blocks":                          func(b []byte) { le.PutUint64(b[72:], 1) },
		"is of 18446744073709551615 blocks":       func(b []byte) { le.PutUint64(b[72:], 1<<64-1) },
		"is cut off: it has 20480 bytes or more":  func(b []byte) { le.PutUint64(b[72:], 129+128) },
		"is cut off: it has 524288 bytes or more": func(b []byte) { le.PutUint32(b[68:], 256<<10); le.PutUint64(b[72:], 2) },
	} {
		b := bytes.Clone(good)
		change(b)
		if v, err := parseVerity(b, room); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v, %v, want %q", v, err, want)
		}
	}
	for n := range veritySuper {
		if _, err := parseVerity(good[:n], room); !errors.Is(err, ErrNoTree) {
			t.Fatalf("%d bytes: %v", n, err)
		}
	}
}

func TestTheFirstOfManySpansIsFound(t *testing.T) {
	const size = 20*spanSize + 5
	var seen atomic.Int64
	none, err := firstIn(t.Context(), size, func() func(from, to int64) (int64, error) {
		return func(from, to int64) (int64, error) { seen.Add(to - from); return -1, nil }
	})
	if none != -1 || err != nil || seen.Load() != size {
		t.Errorf("%d, %v; %d of %d bytes were looked at", none, err, seen.Load(), size)
	}
	first, err := firstIn(t.Context(), size, func() func(from, to int64) (int64, error) {
		return func(from, to int64) (int64, error) { return to - 1, nil } // everywhere
	})
	if first != spanSize-1 || err != nil {
		t.Errorf("%d, %v", first, err)
	}
	broken := errors.New("broken")
	if _, err := firstIn(t.Context(), size, func() func(from, to int64) (int64, error) {
		return func(from, to int64) (int64, error) { return -1, broken }
	}); err != broken {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := firstIn(ctx, size, func() func(from, to int64) (int64, error) {
		return func(from, to int64) (int64, error) { return -1, nil }
	}); err != context.Canceled {
		t.Errorf("%v", err)
	}
}

// Whatever a superblock says, the levels lie in the partition, one behind the other.
func FuzzVerity(f *testing.F) {
	for _, c := range verityCaptures {
		f.Add(c.tree(f)[:veritySuper], int64(1<<20))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		v, err := parseVerity(b, size)
		if err != nil {
			return
		}
		at := v.hashBlock
		for i := len(v.levels) - 1; i > 0; i-- {
			l := v.levels[i]
			if l.start != at || l.blocks < 1 || l.end() > size || l.blocks*l.size < v.levels[i-1].blocks*int64(v.new().Size()) {
				t.Fatalf("level %d of %+v in %d bytes", i, v.levels, size)
			}
			at = l.end()
		}
		if top := v.levels[len(v.levels)-1]; top.blocks != 1 || v.levels[0].blocks < 2 || v.levels[0].end() < 0 {
			t.Fatalf("%+v", v.levels)
		}
	})
}

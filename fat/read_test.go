package fat

import (
	"bytes"
	"errors"
	"io/fs"
	"strings"
	"testing"
)

func TestReaderFindsWhatWasMade(t *testing.T) {
	kernel, small := bytes.Repeat([]byte("kernel"), 50000), []byte("{}")
	v, err := New(Shape{"CIDATA", 4096, 4096, 1 << 20}, []File{{"EFI/BOOT/BOOTX64.EFI", kernel}, {"recast.json", small}, {"EMPTY", nil}})
	if err != nil {
		t.Fatal(err)
	}
	b := v.Bytes()
	r, err := Open(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]byte{"recast.json": small, "RECAST.JSON": small, "empty": nil} {
		if have, err := r.ReadFile(name, 64); err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s: %q, %v", name, have, err)
		}
	}
	for name, want := range map[string]string{"recast.js": fs.ErrNotExist.Error(), "CIDATA": fs.ErrNotExist.Error(), "efi": "it is a folder", "recast.json": "more than 1"} {
		if _, err := r.ReadFile(name, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	n, err := r.Root()
	for _, name := range []string{"EFI", "BOOT", "BOOTX64.EFI"} {
		if err == nil {
			n, err = r.Entry(n, name)
		}
	}
	if err != nil || n.Folder || n.Size != int64(len(kernel)) {
		t.Fatalf("%+v, %v", n, err)
	}
	if spans, err := r.Spans(n); err != nil || len(spans) != 1 || !bytes.Equal(b[spans[0].Start:][:n.Size], kernel) {
		t.Errorf("%+v, %v", spans, err)
	}
}

func TestANameHasTwentyPartsAtTheMost(t *testing.T) {
	for parts, want := range map[int]error{20: nil, 21: fs.ErrNotExist} {
		b := make([]byte, entrySize*(parts+1))
		for i := range parts {
			e := b[entrySize*i:]
			e[0], e[11] = 1, attrLongName
			for _, at := range []int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30} {
				e[at] = 'a'
			}
		}
		e := b[entrySize*parts:]
		copy(e, "KERNEL  IMG")
		e[26] = 2
		v := &Reader{r: bytes.NewReader(b), bits: 16, cluster: 512, clusters: 1, rootSize: int64(len(b))}
		root, err := v.Root()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.Entry(root, strings.Repeat("a", 13*parts)); !errors.Is(err, want) {
			t.Errorf("%d parts: %v, want %v", parts, err, want)
		}
	}
}

// Whatever stands on a volume, what is found of it lies in it, and to look ends.
func FuzzRead(f *testing.F) {
	v, err := New(Shape{"CIDATA", 512, 512, 512}, []File{{"recast.json", bytes.Repeat([]byte("x"), 1500)}, {"EFI/BOOT/BOOTX64.EFI", []byte("loader")}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(v.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		for _, name := range []string{"recast.json", "EFI"} {
			if out, err := v.ReadFile(name, 1000); err == nil && len(out) > 1000 {
				t.Errorf("%d bytes read", len(out))
			}
		}
		n, err := v.Root()
		if err == nil {
			n, err = v.Entry(n, "EFI")
		}
		if err != nil {
			return
		}
		spans, err := v.Spans(n)
		if err != nil {
			return
		}
		for _, s := range spans {
			if s.Start < 0 || s.Length <= 0 || s.Start+s.Length > int64(len(b)) {
				t.Errorf("%+v of %d bytes", s, len(b))
			}
		}
	})
}

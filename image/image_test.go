package image

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"recast/inventory"
	"recast/pack"
)

// disk is a GPT image of n MiB; seed makes it another one.
func disk(t testing.TB, n int, seed uint64) []byte {
	t.Helper()
	size := int64(n) * pack.MiB
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"), []pack.Partition{{
		Type: pack.TypeLinux.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "root",
		Start: pack.MiB, End: size - pack.MiB,
	}})
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-pack.MiB:], last)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := pack.MiB; i < pack.MiB+128<<10; i += 8 { // little: xz is slow under the race detector
		binary.LittleEndian.PutUint64(img[i:], rng.Uint64()&0x0f0f0f0f0f0f0f0f)
	}
	copy(img[2*pack.MiB:], fmt.Sprintf("seed %d", seed))
	return img
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func xzed(t testing.TB, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := xz.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

func zstded(t testing.TB, b []byte, o ...zstd.EOption) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, o...)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close()
	return out.Bytes()
}

type changes struct {
	mu  sync.Mutex
	all []inventory.Digest
}

func (c *changes) add(d inventory.Digest) { c.mu.Lock(); c.all = append(c.all, d); c.mu.Unlock() }

func (c *changes) take() []inventory.Digest {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.all
	c.all = nil
	return all
}

func open(t testing.TB, dir string, o Options) *Store {
	t.Helper()
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func add(t testing.TB, s *Store, b []byte) Info {
	t.Helper()
	info, err := s.Add(context.Background(), bytes.NewReader(b), AddOptions{Source: "test.raw"})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// files lists what is in the store's folders.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	for _, d := range []string{"blobs", "images", "differences"} {
		entries, err := os.ReadDir(filepath.Join(dir, d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			all = append(all, d+"/"+e.Name())
		}
	}
	slices.Sort(all)
	return all
}

func filesOf(infos ...Info) []string {
	var all []string
	for _, i := range infos {
		all = append(all, "blobs/"+i.Pack.Hex(), "blobs/"+i.Manifest.Hex(), "blobs/"+i.Index.Hex(), "images/"+i.Digest.Hex()+".json")
	}
	slices.Sort(all)
	return all
}

func TestTheSameImageGivesTheSamePackHoweverItComes(t *testing.T) {
	img := disk(t, 5, 1)
	var want Info
	for name, b := range map[string][]byte{
		"raw": img, "gzip": gzipped(img), "xz": xzed(t, img), "zstd": zstded(t, img),
		"gzip in two members":  append(gzipped(img[:pack.MiB]), gzipped(img[pack.MiB:])...),
		"zstd in two frames":   append(zstded(t, img[:pack.MiB+5]), zstded(t, img[pack.MiB+5:])...),
		"xz in two streams":    append(xzed(t, img[:pack.MiB+5]), xzed(t, img[pack.MiB+5:])...),
		"zstd, skipping first": append([]byte{0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'}, zstded(t, img)...),
	} {
		dir := t.TempDir()
		now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
		info := add(t, open(t, dir, Options{Now: func() time.Time { return now }}), b)
		if want.Digest == "" {
			want = info
		}
		if diff := cmp.Diff(want, info); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		if info.Digest != inventory.DigestOf(img) || info.Size != int64(len(img)) || info.BlockSize != 512 || !info.Added.Equal(now) {
			t.Errorf("%s: %+v", name, info)
		}
		if diff := cmp.Diff(filesOf(info), files(t, dir)); diff != "" {
			t.Errorf("%s: files (-want +got):\n%s", name, diff)
		}
		for hex, size := range map[string]int64{info.Pack.Hex(): info.PackSize, info.Manifest.Hex(): info.ManifestSize, info.Index.Hex(): info.IndexSize} {
			b, err := os.ReadFile(filepath.Join(dir, "blobs", hex))
			if err != nil || inventory.DigestOf(b).Hex() != hex || int64(len(b)) != size {
				t.Errorf("%s: blob %s: %d bytes of %d, %v", name, hex, len(b), size, err)
			}
		}
	}
}

func TestAddRefusesAndLeavesNothing(t *testing.T) {
	img := disk(t, 5, 1)
	rng := rand.New(rand.NewPCG(1, 1))
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	flip := func(b []byte, at int) []byte { b = bytes.Clone(b); b[at] ^= 0x10; return b }
	gz, xzb, zs := gzipped(img), xzed(t, img), zstded(t, img)
	hugeXZ := bytes.Clone(xzb)
	for i := range hugeXZ[12:24] { // the LZMA2 filter's one property: 40 is 4 GiB
		if hugeXZ[12+i] == 0x21 && hugeXZ[13+i] == 1 {
			hugeXZ[14+i] = 40
			break
		}
	}
	for name, c := range map[string]struct {
		b    []byte
		o    AddOptions
		is   error
		says string
	}{
		"empty":                  {nil, AddOptions{}, ErrUnknown, "source is empty"},
		"text":                   {[]byte("#!/bin/sh\necho hello\n"), AddOptions{}, ErrUnknown, `text, which begins "#!/bin/sh`},
		"a page":                 {bytes.Repeat([]byte("<p>ünïcode</p>\n"), 2000), AddOptions{}, ErrUnknown, "text"},
		"qcow2":                  {append([]byte("QFI\xfb\x00\x00\x00\x03"), noise...), AddOptions{}, ErrUnknown, "qcow2 image; convert it first: qemu-img convert -O raw"},
		"qcow2 in gzip":          {gzipped(append([]byte("QFI\xfb"), noise...)), AddOptions{}, ErrUnknown, "qcow2"},
		"gzip in gzip":           {gzipped(gz), AddOptions{}, ErrUnknown, "once more"},
		"noise":                  {noise, AddOptions{}, ErrUnknown, "neither a GPT nor an MBR"},
		"zeros":                  {make([]byte, 3*pack.MiB), AddOptions{}, ErrUnknown, "neither a GPT nor an MBR"},
		"boot signature alone":   {append(append(make([]byte, 510), 0x55, 0xaa), make([]byte, 9000)...), AddOptions{}, ErrUnknown, "neither"},
		"GPT, flipped":           {flip(img, 512+30), AddOptions{}, nil, "header checksum"},
		"raw, cut":               {img[:len(img)-512], AddOptions{}, pack.ErrTruncated, "ends at byte 5242368"},
		"gzip, cut":              {gz[:len(gz)-100], AddOptions{}, io.ErrUnexpectedEOF, fmt.Sprintf("truncated: the source ends at byte %d", len(gz)-100)},
		"gzip, cut to 5":         {gz[:5], AddOptions{}, nil, "truncated: the source ends at byte 5"},
		"xz, cut":                {xzb[:len(xzb)-30], AddOptions{}, nil, fmt.Sprintf("byte %d", len(xzb)-30)},
		"zstd, cut":              {zs[:len(zs)-100], AddOptions{}, nil, fmt.Sprintf("byte %d", len(zs)-100)},
		"zstd, cut to its magic": {zs[:4], AddOptions{}, nil, "byte 4"},
		"gzip, flipped":          {flip(gz, len(gz)/2), AddOptions{}, nil, "corrupt before byte"},
		"xz, flipped":            {flip(xzb, len(xzb)/2), AddOptions{}, nil, "corrupt before byte"},
		"zstd, flipped":          {flip(zs, len(zs)/2), AddOptions{}, nil, "corrupt before byte"},
		"gzip, something behind": {append(bytes.Clone(gz), "garbage that is long enough"...), AddOptions{}, nil, "corrupt before byte"},
		"zstd, a huge window":    {zstded(t, img, zstd.WithWindowSize(512<<20)), AddOptions{}, nil, "limit of 268435456"},
		"xz, a huge dictionary":  {hugeXZ, AddOptions{}, nil, "dictionary of 4294967295 bytes is over the limit of 268435456"},
		"over the limit":         {img, AddOptions{MaxSize: 5*pack.MiB - 1}, pack.ErrTooLarge, "limit of 5242879 bytes"},
		"a bomb":                 {zstded(t, append(bytes.Clone(img[:pack.MiB]), make([]byte, 40*pack.MiB)...)), AddOptions{MaxSize: 16 * pack.MiB}, pack.ErrTooLarge, "limit of 16777216 bytes"},
		"another digest":         {img, AddOptions{Want: inventory.DigestOf(noise)}, ErrDigest, "wanted " + inventory.DigestOf(noise).String() + ", the source holds " + inventory.DigestOf(img).String()},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir, Options{})
			c.o.Source = "some.file"
			_, err := s.Add(context.Background(), bytes.NewReader(c.b), c.o)
			if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), `"some.file"`) {
				t.Errorf("error %v, want one with %q", err, c.says)
			}
			if left := files(t, dir); len(left) > 0 || len(s.List()) > 0 {
				t.Errorf("left behind: %v %v", left, s.List())
			}
		})
	}
}

type brokenReader struct{ io.Reader }

func (b brokenReader) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = syscall.ECONNRESET
	}
	return n, err
}

func TestABrokenLineIsNotTakenForCorruptData(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	img := disk(t, 5, 1)
	for _, b := range [][]byte{img[:3*pack.MiB], gzipped(img)[:9000], zstded(t, img)[:9000]} {
		_, err := s.Add(context.Background(), brokenReader{bytes.NewReader(b)}, AddOptions{})
		if !errors.Is(err, syscall.ECONNRESET) || !strings.Contains(err.Error(), fmt.Sprintf("byte %d", len(b))) || strings.Contains(err.Error(), "corrupt") {
			t.Errorf("%v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Add(ctx, bytes.NewReader(img), AddOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left := files(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// openOn opens a store on a disk of its own, of that size.
func openOn(t *testing.T, size string) (s *Store, dir string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir = t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skip("needs root that may mount a tmpfs")
	}
	t.Cleanup(func() { syscall.Unmount(dir, 0) })
	s = open(t, dir, Options{})
	t.Cleanup(func() { s.Close() })
	return s, dir
}

func TestAFullDiskIsRefusedCleanly(t *testing.T) {
	s, dir := openOn(t, "48k")
	_, err := s.Add(context.Background(), bytes.NewReader(disk(t, 5, 1)), AddOptions{})
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "write the pack at byte") {
		t.Errorf("%v", err)
	}
	if left := files(t, dir); len(left) > 0 || len(s.List()) > 0 {
		t.Errorf("left behind: %v", left)
	}
	small := make([]byte, 2*pack.MiB)
	copy(small, disk(t, 5, 1)[:440])
	copy(small[446:], []byte{0x80, 0, 0, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0})
	small[510], small[511] = 0x55, 0xaa
	add(t, s, small) // what fits still goes
}

func TestSources(t *testing.T) {
	img := disk(t, 5, 1)
	packed := gzipped(img)
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/disk.gz":
			w.Header().Set("Content-Length", fmt.Sprint(len(packed)))
			w.Write(packed)
		case "/cut":
			w.Header().Set("Content-Length", fmt.Sprint(len(img)))
			w.Write(img[:4*pack.MiB])
		case "/plain":
			http.Redirect(w, r, "http://"+r.Host+"/disk.gz", http.StatusFound)
		case "/moved":
			http.Redirect(w, r, "/disk.gz", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	}))
	defer server.Close()
	file := filepath.Join(t.TempDir(), "disk.img.gz")
	if err := os.WriteFile(file, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	for source, says := range map[string]string{
		file: "", "file://" + file: "", server.URL + "/disk.gz": "", server.URL + "/moved": "",
		server.URL + "/gone":  "404 Not Found",
		server.URL + "/cut":   "unexpected EOF",
		server.URL + "/plain": "not https",
		strings.Replace(server.URL, "https", "http", 1) + "/disk.gz": `scheme "http"; give a file or an https URL`,
		file + ".gone":     "no such file",
		filepath.Dir(file): "it is a folder",
	} {
		dir := t.TempDir()
		s := open(t, dir, Options{Client: server.Client()})
		var last Progress
		info, err := s.AddSource(context.Background(), source, AddOptions{Progress: func(p Progress) { last = p }})
		if says == "" {
			if err != nil || info.Digest != inventory.DigestOf(img) || info.Source != source {
				t.Errorf("%s: %+v %v", source, info, err)
			}
			if want := (Progress{Read: int64(len(packed)), ReadTotal: int64(len(packed)), Unpacked: info.Size, Packed: info.PackSize}); last != want {
				t.Errorf("%s: last progress %+v, want %+v", source, last, want)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), source) {
			t.Errorf("%s: %v, want %q", source, err, says)
		}
		if left := files(t, dir); len(left) > 0 {
			t.Errorf("%s: left behind: %v", source, left)
		}
	}
}

func TestImagesOutliveTheProcess(t *testing.T) {
	dir := t.TempDir()
	var seen changes
	s := open(t, dir, Options{OnChange: seen.add})
	a, b := add(t, s, disk(t, 5, 1)), add(t, s, disk(t, 5, 2))
	again := add(t, s, disk(t, 5, 1))
	if diff := cmp.Diff(a, again); diff != "" {
		t.Errorf("added twice (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]inventory.Digest{a.Digest, b.Digest}, seen.take()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if _, err := Open(dir, Options{}); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("opened twice: %v", err)
	}
	s.Close()

	// A crash leaves temp files and blobs whose record was never written.
	for _, name := range []string{"blobs/tmp-X", "images/tmp-Y", "blobs/" + inventory.DigestOf(nil).Hex()} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, Options{OnChange: seen.add})
	if diff := cmp.Diff(filesOf(a, b), files(t, dir)); diff != "" {
		t.Errorf("after a crash (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]Info{a, b}, s.List()); diff != "" {
		t.Errorf("opened again (-want +got):\n%s", diff)
	}
	m, err := s.Manifest(a.Digest)
	if err != nil || inventory.NewDigest(m.Digest) != a.Digest || inventory.NewDigest(m.Pack) != a.Pack {
		t.Errorf("manifest: %v", err)
	}
	if err := s.Remove(a.Digest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(filesOf(b), files(t, dir)); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if err := s.Remove(a.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := s.Manifest(a.Digest); !errors.Is(err, ErrNotFound) {
		t.Errorf("manifest of a removed image: %v", err)
	}
	if diff := cmp.Diff([]inventory.Digest{a.Digest}, seen.take()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	s.Close()

	// A record that cannot be read costs no blobs.
	if err := os.WriteFile(filepath.Join(dir, "images", b.Digest.Hex()+".json"), []byte(`{"version":9}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if len(s.List()) != 0 || len(files(t, dir)) != 4 {
		t.Errorf("unreadable record: %v %v", s.List(), files(t, dir))
	}
	if got := add(t, s, disk(t, 5, 2)); got.Pack != b.Pack {
		t.Errorf("added again: %+v", got)
	}
}

func TestDamageIsFoundKeptAndMended(t *testing.T) {
	img := disk(t, 5, 1)
	flip := func(t *testing.T, name string, at int64) {
		t.Helper()
		b, err := os.ReadFile(name)
		if err == nil {
			b[at] ^= 4
			err = os.WriteFile(name, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx := context.Background()
	for name, c := range map[string]struct {
		frame int
		hurt  func(t *testing.T, dir string, i Info, m *pack.Manifest)
		says  []string
	}{
		"a flipped bit in the pack": {1, func(t *testing.T, dir string, i Info, m *pack.Manifest) {
			flip(t, filepath.Join(dir, "blobs", i.Pack.Hex()), m.Chunks[1].Offset+1000)
		}, []string{"frame 1 of pack", "Pack"}},
		"a flipped bit in the manifest": {-1, func(t *testing.T, dir string, i Info, m *pack.Manifest) {
			flip(t, filepath.Join(dir, "blobs", i.Manifest.Hex()), 200)
		}, []string{"manifest", "Manifest", "has digest"}},
		"a cut pack": {4, func(t *testing.T, dir string, i Info, m *pack.Manifest) {
			if err := os.Truncate(filepath.Join(dir, "blobs", i.Pack.Hex()), i.PackSize-3); err != nil {
				t.Fatal(err)
			}
		}, []string{"Pack"}},
		"a pack that is gone": {0, func(t *testing.T, dir string, i Info, m *pack.Manifest) {
			if err := os.Remove(filepath.Join(dir, "blobs", i.Pack.Hex())); err != nil {
				t.Fatal(err)
			}
		}, []string{"Pack", "no such file"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			var seen changes
			s := open(t, dir, Options{OnChange: seen.add})
			info := add(t, s, img)
			m, err := s.Manifest(info.Digest)
			if err != nil {
				t.Fatal(err)
			}
			for frame := -1; frame < len(m.Chunks); frame++ {
				if err := s.Check(ctx, info.Digest, frame); err != nil {
					t.Fatalf("frame %d of a good image: %v", frame, err)
				}
			}
			if err := s.Verify(ctx, info.Digest); err != nil {
				t.Fatalf("a good image: %v", err)
			}
			seen.take()
			c.hurt(t, dir, info, m)
			err = s.Check(ctx, info.Digest, c.frame)
			if !errors.Is(err, ErrDamaged) {
				t.Fatalf("check: %v", err)
			}
			damaged, err := s.Info(info.Digest)
			if err != nil {
				t.Fatal(err)
			}
			for _, says := range c.says {
				switch says {
				case "Pack":
					says = filepath.Join(dir, "blobs", info.Pack.Hex())
				case "Manifest":
					says = filepath.Join(dir, "blobs", info.Manifest.Hex())
				}
				if strings.Contains(damaged.Damaged, "damaged") {
					t.Errorf("damage %q says itself that it is one", damaged.Damaged)
				}
				if !strings.Contains(damaged.Damaged, says) {
					t.Errorf("damage %q does not name %q", damaged.Damaged, says)
				}
			}
			if err := s.Verify(ctx, info.Digest); !errors.Is(err, ErrDamaged) {
				t.Errorf("verify: %v", err)
			}
			if diff := cmp.Diff(info.Digest, seen.take()[0]); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			s.Close()
			s = open(t, dir, Options{OnChange: seen.add})
			if again, _ := s.Info(info.Digest); again.Damaged == "" {
				t.Error("the mark did not outlive the process")
			}
			seen.take()
			mended := add(t, s, gzipped(img))
			if diff := cmp.Diff(info, mended); diff != "" {
				t.Errorf("mended (-want +got):\n%s", diff)
			}
			if err := s.Verify(ctx, info.Digest); err != nil {
				t.Errorf("mended: %v", err)
			}
			if diff := cmp.Diff([]inventory.Digest{info.Digest}, seen.take()); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(filesOf(info), files(t, dir)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// Damage that nobody has noticed yet is mended in passing.
func TestAddingAgainMendsUnseenDamage(t *testing.T) {
	dir := t.TempDir()
	var seen changes
	s := open(t, dir, Options{OnChange: seen.add})
	info := add(t, s, disk(t, 5, 1))
	name := filepath.Join(dir, "blobs", info.Pack.Hex())
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	seen.take()
	if again := add(t, s, disk(t, 5, 1)); !reflect.DeepEqual(again, info) {
		t.Errorf("added again: %+v", again)
	}
	if err := s.Verify(context.Background(), info.Digest); err != nil {
		t.Error(err)
	}
	if len(seen.take()) != 1 {
		t.Error("nobody was told")
	}
}

// An older compressor made other frames of the same chunks: the image stays
// good as it is, and when it breaks a new pack takes the place of the old one.
func TestMendingWithAnotherCompressor(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	img := disk(t, 5, 1)
	info := add(t, s, img)
	m, err := s.Manifest(info.Digest)
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	var old bytes.Buffer
	for i := range m.Chunks {
		frame := enc.EncodeAll(img[i*pack.ChunkSize:][:m.ChunkLen(i)], nil)
		m.Chunks[i].Offset, m.Chunks[i].Length = int64(old.Len()), len(frame)
		old.Write(frame)
	}
	enc.Close()
	m.PackSize = int64(old.Len())
	m.Pack.UnmarshalText([]byte(inventory.DigestOf(old.Bytes())))
	if err := s.Remove(info.Digest); err != nil {
		t.Fatal(err)
	}
	s.change.Lock()
	f, temp, err := s.temp("blobs")
	if err != nil {
		t.Fatal(err)
	}
	f.Write(old.Bytes())
	index, err := pack.NewIndex(t.Context(), m, func(i int) ([]byte, error) { return m.ReadChunk(f, i) })
	if err != nil {
		t.Fatal(err)
	}
	older, _, err := s.commit(index, nil, f, temp, "older")
	f.Close()
	s.change.Unlock()
	if err != nil || older.Pack == info.Pack {
		t.Fatalf("%+v %v", older, err)
	}
	if got := add(t, s, img); got.Pack != older.Pack {
		t.Error("a good pack was replaced")
	}
	name := filepath.Join(dir, "blobs", older.Pack.Hex())
	b := old.Bytes()
	b[m.Chunks[1].Offset+99] ^= 1
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Check(context.Background(), info.Digest, 1); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	got := add(t, s, img)
	if got.Pack != info.Pack || got.Damaged != "" {
		t.Errorf("mended: %+v", got)
	}
	if err := s.Verify(context.Background(), info.Digest); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(filesOf(got), files(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestCheckRefusesWhatIsNotThere(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	info := add(t, s, disk(t, 5, 1))
	ctx := context.Background()
	for _, frame := range []int{-2, 5, 1 << 30} {
		if err := s.Check(ctx, info.Digest, frame); err == nil || errors.Is(err, ErrDamaged) {
			t.Errorf("frame %d: %v", frame, err)
		}
	}
	if err := s.Check(ctx, inventory.DigestOf(nil), 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("another image: %v", err)
	}
	if now, _ := s.Info(info.Digest); now.Damaged != "" {
		t.Errorf("marked: %s", now.Damaged)
	}
}

func BenchmarkAdd(b *testing.B) {
	img := disk(b, 32, 1)
	for _, c := range []struct {
		name string
		data []byte
	}{{"raw", img}, {"gzip", gzipped(img)}, {"xz", xzed(b, img)}, {"zstd", zstded(b, img)}} {
		b.Run(c.name, func(b *testing.B) {
			s := open(b, b.TempDir(), Options{})
			b.SetBytes(int64(len(img)))
			for b.Loop() {
				info := add(b, s, c.data)
				if err := s.Remove(info.Digest); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAStreamHasNoNameToQuote: standard input is nobody's file.
func TestAStreamHasNoNameToQuote(t *testing.T) {
	s, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Add(t.Context(), strings.NewReader(""), AddOptions{}); err == nil || !strings.HasPrefix(err.Error(), "add image from a stream: ") {
		t.Errorf("%v", err)
	}
}

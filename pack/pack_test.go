package pack

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
)

const (
	testDisk = "11111111-2222-4333-8444-555555555555"
	partA    = "AAAAAAAA-2222-4333-8444-555555555555"
	partB    = "BBBBBBBB-2222-4333-8444-555555555555"
)

// testImage is a GPT disk of size bytes: boot code, a partition of noise in
// front, a hole, and a partition of text that ends right at the backup table.
func testImage(t testing.TB, size int64, bs int) []byte {
	t.Helper()
	backup := size - int64(1+blocksFor(gptEntries*gptEntrySize, bs))*int64(bs)
	parts := []Partition{
		{Number: 1, Type: TypeBIOSBoot.String(), GUID: partA, Name: "bios", Start: 64 << 10, End: 3*MiB - 4096},
		{Number: 2, Type: TypeLinux.String(), GUID: partB, Name: "wurzel-ü", Start: size - 3*MiB/2, End: backup},
	}
	first, last, err := FormatGPT(size, bs, MustGUID(testDisk), parts)
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-MiB:], last)
	copy(img, "boot code, and the pointer to the core")
	rng := rand.New(rand.NewPCG(1, 2))
	for i := parts[0].Start; i < parts[0].End; i += 8 {
		if i%MiB >= 128<<10 && i > MiB { // compressing is slow under the race detector
			continue
		}
		binary.LittleEndian.PutUint64(img[i:], rng.Uint64())
	}
	for i := parts[1].Start; i < parts[1].End; i++ {
		img[i] = "the quick brown fox "[i%20]
	}
	return img
}

func packed(t testing.TB, img []byte, o WriteOptions) (*Manifest, []byte) {
	t.Helper()
	x, b := indexed(t, img, o)
	return x.Manifest, b
}

func indexed(t testing.TB, img []byte, o WriteOptions) (*Index, []byte) {
	t.Helper()
	var b bytes.Buffer
	x, err := Write(context.Background(), &b, bytes.NewReader(img), o)
	if err != nil {
		t.Fatal(err)
	}
	return x, b.Bytes()
}

func chunksOf(m *Manifest, pack []byte) func(int) ([]byte, error) {
	return func(i int) ([]byte, error) { return m.ReadChunk(bytes.NewReader(pack), i) }
}

func TestPackGivesTheImageBack(t *testing.T) {
	for _, size := range []int64{5 * MiB, 6 * MiB, 6*MiB + 512, 9*MiB - 512} {
		img := testImage(t, size, 512)
		m, p := packed(t, img, WriteOptions{})
		if m.Size != size || m.Digest != sha256.Sum256(img) || m.Pack != sha256.Sum256(p) || m.PackSize != int64(len(p)) {
			t.Fatalf("%d: manifest says %d %s, pack %d %s", size, m.Size, m.Digest, m.PackSize, m.Pack)
		}
		var out []byte
		for i := range m.Chunks {
			c, err := m.ReadChunk(bytes.NewReader(p), i)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, c...)
		}
		if !bytes.Equal(out, img) {
			t.Fatalf("%d: frames do not give the image back", size)
		}
		d, err := zstd.NewReader(bytes.NewReader(p))
		if err != nil {
			t.Fatal(err)
		}
		out, err = io.ReadAll(d)
		d.Close()
		if err != nil || !bytes.Equal(out, img) {
			t.Fatalf("%d: the pack as one stream gives another image (%v)", size, err)
		}
	}
}

func TestZstdCommandRestoresTheImage(t *testing.T) {
	zstdCommand, err := exec.LookPath("zstd")
	if err != nil {
		t.Skip("needs zstd (apt-get install zstd)")
	}
	img := testImage(t, 7*MiB+512, 512)
	_, p := packed(t, img, WriteOptions{})
	cmd := exec.Command(zstdCommand, "-dc")
	cmd.Stdin = bytes.NewReader(p)
	out, err := cmd.Output()
	if err != nil || !bytes.Equal(out, img) {
		t.Fatalf("zstd -d: %d bytes of %d, %v", len(out), len(img), err)
	}
}

func TestPackIsTheSameWhateverTheWorkers(t *testing.T) {
	img := testImage(t, 12*MiB, 512)
	rng := rand.New(rand.NewPCG(3, 4))
	for i := 4 * MiB; i < 9*MiB; i++ { // compressible, and different in each chunk
		if i%MiB >= 256<<10 {
			continue
		}
		img[i] = byte(rng.IntN(1 + i>>20))
	}
	want, p := packed(t, img, WriteOptions{Workers: 1})
	for workers := 2; workers < 9; workers += 3 {
		for range 2 {
			m, q := packed(t, img, WriteOptions{Workers: workers})
			if !bytes.Equal(p, q) {
				t.Fatalf("%d workers made another pack", workers)
			}
			if diff := cmp.Diff(string(want.Encode()), string(m.Encode())); diff != "" {
				t.Fatalf("%d workers made another manifest (-want +got):\n%s", workers, diff)
			}
		}
	}
	// Mending re-makes single frames with a fresh encoder.
	enc, err := NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	for i := len(want.Chunks) - 1; i >= 0; i-- {
		c := want.Chunks[i]
		frame := enc.Encode(img[i*ChunkSize:][:want.ChunkLen(i)], nil)
		if !bytes.Equal(frame, p[c.Offset:][:c.Length]) {
			t.Fatalf("frame %d made alone differs", i)
		}
	}
}

func TestHolesAreSmallAndMarked(t *testing.T) {
	m, _ := packed(t, testImage(t, 9*MiB, 512), WriteOptions{})
	for i, c := range m.Chunks {
		if hole := i >= 3 && i < 7; c.Hole != hole {
			t.Errorf("chunk %d: hole %v, want %v", i, c.Hole, hole)
		}
		if c.Hole && c.Length > 128 {
			t.Errorf("chunk %d: %d bytes for a frame of zeros", i, c.Length)
		}
	}
}

type failAt struct {
	r io.Reader
	n int64
}

var errBroken = errors.New("line broke")

func (f *failAt) Read(b []byte) (int, error) {
	if f.n <= 0 {
		return 0, errBroken
	}
	n, err := f.r.Read(b[:min(int64(len(b)), f.n)])
	f.n -= int64(n)
	return n, err
}

// A transfer that broke at a place where the table cannot tell.
func TestWriteKeepsABreakApartFromTheEnd(t *testing.T) {
	img := make([]byte, 3*MiB+100)
	_, err := Write(context.Background(), io.Discard, io.MultiReader(bytes.NewReader(img), iotest.ErrReader(io.ErrUnexpectedEOF)), WriteOptions{})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "byte 3145828") {
		t.Errorf("%v", err)
	}
}

type failWriter struct{ n int }

func (f *failWriter) Write(b []byte) (int, error) {
	if f.n -= len(b); f.n < 0 {
		return 0, errBroken
	}
	return len(b), nil
}

func TestWriteNamesWhereItStopped(t *testing.T) {
	img := testImage(t, 12*MiB, 512)
	ctx := context.Background()
	_, err := Write(ctx, io.Discard, &failAt{bytes.NewReader(img), 5000000}, WriteOptions{})
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "byte 5000000") {
		t.Errorf("broken reader: %v", err)
	}
	_, err = Write(ctx, &failWriter{n: 1 << 20}, bytes.NewReader(img), WriteOptions{})
	if !errors.Is(err, errBroken) || !strings.Contains(err.Error(), "write the pack at byte") {
		t.Errorf("broken writer: %v", err)
	}
	_, err = Write(ctx, io.Discard, bytes.NewReader(img), WriteOptions{MaxSize: 12*MiB - 1})
	if !errors.Is(err, ErrTooLarge) || !strings.Contains(err.Error(), "12582911") {
		t.Errorf("over the limit: %v", err)
	}
	if _, err = Write(ctx, io.Discard, bytes.NewReader(img), WriteOptions{MaxSize: 12 * MiB}); err != nil {
		t.Errorf("exactly the limit: %v", err)
	}
	for _, cut := range []int64{512, MiB, 6 * MiB, 11 * MiB, 1} {
		if _, err = Write(ctx, io.Discard, bytes.NewReader(img[:12*MiB-cut]), WriteOptions{}); !errors.Is(err, ErrTruncated) {
			t.Errorf("%d bytes short: %v", cut, err)
		}
	}
	if _, err = Write(ctx, io.Discard, strings.NewReader(""), WriteOptions{}); err == nil {
		t.Error("an empty image was taken")
	}
	stopped, cancel := context.WithCancel(ctx)
	cancel()
	if _, err = Write(stopped, io.Discard, bytes.NewReader(img), WriteOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestDecodeChunkTakesOnlyTheListedBytes(t *testing.T) {
	img := testImage(t, 6*MiB, 512)
	m, p := packed(t, img, WriteOptions{})
	frame := func(i int) []byte { return bytes.Clone(p[m.Chunks[i].Offset:][:m.Chunks[i].Length]) }

	dst := make([]byte, ChunkSize)
	for i := range m.Chunks {
		out, err := m.DecodeChunk(i, frame(i), dst)
		if err != nil || !bytes.Equal(out, img[i*ChunkSize:][:len(out)]) {
			t.Fatalf("chunk %d: %v", i, err)
		}
		if &out[0] != &dst[0] {
			t.Fatalf("chunk %d: the buffer was not used", i)
		}
	}
	rng := rand.New(rand.NewPCG(5, 6))
	for range 100 {
		f := frame(5)
		f[rng.IntN(len(f))] ^= 1 << rng.IntN(8)
		if out, err := m.DecodeChunk(5, f, dst); err == nil && !bytes.Equal(out, img[5*ChunkSize:]) {
			t.Fatal("a flipped bit gave other bytes without an error")
		} else if err != nil && !errors.Is(err, ErrBadFrame) {
			t.Fatalf("flipped bit: %v", err)
		}
	}
	for name, f := range map[string][]byte{
		"another frame": frame(0), "nothing": nil, "short": frame(5)[:10], "long": append(frame(5), 0),
	} {
		if _, err := m.DecodeChunk(5, f, nil); !errors.Is(err, ErrBadFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A sound frame with its checksum, of a chunk that is one bit off.
	enc, err := NewEncoder(1)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	off := bytes.Clone(img[5*ChunkSize:])
	off[len(off)/2] ^= 1
	other := enc.Encode(off, nil)
	lying := *m
	lying.Chunks = append([]Chunk(nil), m.Chunks...)
	lying.Chunks[5].Length = len(other)
	if _, err := lying.DecodeChunk(5, other, nil); !errors.Is(err, ErrBadFrame) || !strings.Contains(err.Error(), "digest") {
		t.Errorf("another chunk: %v", err)
	}
	if _, err := m.DecodeChunk(6, frame(5), nil); err == nil {
		t.Error("a chunk past the end was decoded")
	}
	if _, err := m.DecodeChunk(-1, frame(5), nil); err == nil {
		t.Error("chunk -1 was decoded")
	}
}

// A frame may be small and unpack to anything; only a chunk's worth is made.
func TestDecodeChunkStopsABomb(t *testing.T) {
	m, _ := packed(t, testImage(t, 6*MiB, 512), WriteOptions{})
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer enc.Close()
	bomb := enc.EncodeAll(make([]byte, 64*MiB), nil)
	m.Chunks[5].Length = len(bomb)
	if _, err := m.DecodeChunk(5, bomb, nil); !errors.Is(err, ErrBadFrame) {
		t.Fatalf("bomb with its size: %v", err)
	}
	var b bytes.Buffer
	stream, err := zstd.NewWriter(&b, zstd.WithWindowSize(1<<20))
	if err != nil {
		t.Fatal(err)
	}
	for range 64 {
		stream.Write(zeroChunk[:])
	}
	stream.Close()
	m.Chunks[5].Length = b.Len()
	dst := make([]byte, ChunkSize, 4*ChunkSize)
	dst[:cap(dst)][ChunkSize] = 0x77
	if _, err := m.DecodeChunk(5, b.Bytes(), dst); !errors.Is(err, ErrBadFrame) {
		t.Fatalf("bomb without its size: %v", err)
	}
	if dst[:cap(dst)][ChunkSize] != 0x77 {
		t.Fatal("more than a chunk was written")
	}
	allocs := testing.AllocsPerRun(5, func() { m.DecodeChunk(5, b.Bytes(), dst) })
	if allocs > 50 {
		t.Errorf("%v allocations for a bomb", allocs)
	}
}

func TestManifestHasOneForm(t *testing.T) {
	m, _ := packed(t, testImage(t, 6*MiB+512, 512), WriteOptions{})
	b := m.Encode()
	got, err := ParseManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(m, got); diff != "" {
		t.Fatalf("parsed again (-want +got):\n%s", diff)
	}
	for name, c := range map[string]struct{ old, new, says string }{
		"unknown field":      {`{"version"`, `{"extra":1,"version"`, "extra"},
		"other version":      {`"version":1`, `"version":2`, "version 2"},
		"space":              {`"version":1`, `"version": 1`, "canonical"},
		"other case":         {`"version":1`, `"Version":1`, "canonical"},
		"field twice":        {`"version":1`, `"version":1,"version":1`, "canonical"},
		"size 0":             {`"size":6291968`, `"size":0`, "size 0"},
		"size negative":      {`"size":6291968`, `"size":-1`, "size -1"},
		"size huge":          {`"size":6291968`, `"size":9223372036854775807`, "outside"},
		"a chunk too many":   {`"size":6291968`, `"size":7340032`, "canonical"},
		"two chunks":         {`"size":6291968`, `"size":2097152`, "partition"},
		"chunk size":         {`"chunkSize":1048576`, `"chunkSize":4096`, "chunkSize"},
		"block size":         {`"blockSize":512`, `"blockSize":513`, "blockSize"},
		"pack size":          {`"packSize":`, `"packSize":1`, "add up"},
		"scheme":             {`"scheme":"gpt"`, `"scheme":"apm"`, "apm"},
		"short digest":       {`"digest":"sha256:`, `"digest":"sha256:0`, "64"},
		"upper-case digest":  {`"digest":"sha256:` + m.Digest.Hex(), `"digest":"sha256:` + strings.ToUpper(m.Digest.Hex()), "lower-case"},
		"sums no base64":     {`"sums":"`, `"sums":"!`, "sums"},
		"a sum too few":      {`"sums":"`, `"sums":"AAAA`, "sums"},
		"no frame":           {`"lengths":"` + lengths(m)[:6], `"lengths":"AAAAAA`, "frame 0"},
		"frame over limit":   {`"lengths":"` + lengths(m)[:6], `"lengths":"//////`, "frame 0"},
		"partition outside":  {`"start":65536`, `"start":-1`, "partition 1"},
		"partition numbered": {`"number":1`, `"number":0`, "partition 0"},
		"something behind":   {"}\n", "}\n{}", "canonical"},
		"cut":                {"}\n", "", "EOF"},
	} {
		s := strings.Replace(string(b), c.old, c.new, 1)
		if s == string(b) {
			t.Errorf("%s: the case changes nothing", name)
			continue
		}
		_, err := ParseManifest([]byte(s))
		if name == "a chunk too many" { // same number of chunks: only the digest tells, which is checked outside
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: error %v, want one with %q", name, err, c.says)
		}
	}
	if _, err := ParseManifest(make([]byte, MaxManifestSize+1)); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("over the limit: %v", err)
	}
}

func lengths(m *Manifest) string {
	s := string(m.Encode())
	_, s, _ = strings.Cut(s, `"lengths":"`)
	return s
}

func TestManifestOfALargeImageIsCompact(t *testing.T) {
	for _, c := range []struct {
		size int64
		max  int
	}{{64 << 30, 3300000}, {MaxImageSize, MaxManifestSize}} {
		m := &Manifest{Size: c.size, BlockSize: 512, Layout: Layout{Scheme: SchemeNone}}
		m.Chunks = make([]Chunk, NumChunks(m.Size))
		for i := range m.Chunks {
			m.Chunks[i] = Chunk{Length: 300000, Offset: int64(i) * 300000}
			binary.LittleEndian.PutUint64(m.Chunks[i].Sum[:], uint64(i))
		}
		m.PackSize = int64(len(m.Chunks)) * 300000
		b := m.Encode()
		if len(b) > c.max {
			t.Errorf("%d bytes for an image of %d GiB, want at most %d", len(b), c.size>>30, c.max)
		}
		if _, err := ParseManifest(b); err != nil {
			t.Error(err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	m, _ := packed(f, testImage(f, 5*MiB, 512), WriteOptions{})
	f.Add(m.Encode())
	f.Add([]byte(`{"version":1,"size":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		if !bytes.Equal(m.Encode(), b) {
			t.Fatal("two forms of one manifest")
		}
		var end int64
		for i, c := range m.Chunks {
			if c.Offset != end || c.Length <= 0 || m.ChunkLen(i) <= 0 || m.ChunkLen(i) > ChunkSize {
				t.Fatalf("chunk %d: %+v", i, c)
			}
			end += int64(c.Length)
		}
		if end != m.PackSize {
			t.Fatal("frames do not fill the pack")
		}
	})
}

func FuzzDecodeChunk(f *testing.F) {
	img := testImage(f, 5*MiB, 512)
	m, p := packed(f, img, WriteOptions{})
	for i, c := range m.Chunks {
		f.Add(i, p[c.Offset:][:min(c.Length, 4096)])
	}
	f.Fuzz(func(t *testing.T, i int, frame []byte) {
		if i >= 0 && i < len(m.Chunks) {
			c := *m
			c.Chunks = append([]Chunk(nil), m.Chunks...)
			c.Chunks[i].Length = len(frame) // get past the length, to the decoder
			if out, err := c.DecodeChunk(i, frame, nil); err == nil && !bytes.Equal(out, img[i*ChunkSize:][:m.ChunkLen(i)]) {
				t.Fatal("other bytes without an error")
			}
		}
	})
}

func BenchmarkWrite(b *testing.B) {
	img := benchImage(b)
	b.SetBytes(int64(len(img)))
	for b.Loop() {
		if _, err := Write(context.Background(), io.Discard, bytes.NewReader(img), WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeChunk(b *testing.B) {
	img := benchImage(b)
	m, p := packed(b, img, WriteOptions{})
	dst := make([]byte, ChunkSize)
	b.SetBytes(ChunkSize)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		c := &m.Chunks[i%len(m.Chunks)]
		if _, err := m.DecodeChunk(i%len(m.Chunks), p[c.Offset:][:c.Length], dst); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

func BenchmarkScan(b *testing.B) {
	img := benchImage(b)
	x, _ := indexed(b, img, WriteOptions{})
	m := x.Manifest
	for name, x := range map[string]*Index{"chunks": nil, "blocks": x} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(img)))
			for b.Loop() {
				if _, err := Scan(context.Background(), bytes.NewReader(img), m, x, nil, ScanOptions{Workers: 2}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// benchImage is 64 MiB that compress to about a third, as system images do.
func benchImage(b *testing.B) []byte {
	img := testImage(b, 64*MiB, 512)
	rng := rand.New(rand.NewPCG(7, 8))
	for i := 4 * MiB; i < 60*MiB; {
		n := rng.IntN(60)
		if rng.IntN(2) == 0 { // repeat something near
			copy(img[i:i+n], img[i-1-rng.IntN(1<<16):])
		} else {
			for j := range n {
				img[i+j] = byte(rng.IntN(96))
			}
		}
		i += n
	}
	return img
}

func writeFile(t *testing.T, b []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(name, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

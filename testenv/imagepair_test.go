package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"recast/inventory"
	"recast/pack"
)

// benchPair is two disk images, a share of their files apart, each made anew.
type benchPair struct {
	dir  string // of everything; served
	What string // it is
	Size [2]int64
	Jobs [2]inventory.JobImage // the second with index and difference
}

// name of image i's file; the others' files stand beside it.
func (p *benchPair) name(i int) string { return filepath.Join(p.dir, string(rune('A'+i))+".raw") }

// readBenchPair makes the pair in dir, with all that the peers need, or takes what an
// earlier run left there: of two releases of Debian where the cache has them, else of
// so many MiB of this machine's own files (none: whichever there is).
func readBenchPair(b *testing.B, dir string, mib int64) *benchPair {
	b.Helper()
	p := &benchPair{dir: dir}
	kept := filepath.Join(dir, "pair.json")
	if raw, err := os.ReadFile(kept); err == nil {
		benchDo(b, json.Unmarshal(raw, p))
		if !p.current(b) {
			p.What, _, _ = strings.Cut(p.What, ";")
			p.pack(b)
			benchDo(b, os.WriteFile(kept, benchMust(json.Marshal(p))(b), 0o644))
		}
		return p
	} else if !errors.Is(err, fs.ErrNotExist) {
		b.Fatal(err)
	}
	if mib > 0 || !p.debian(b) {
		if mib == 0 {
			mib = 640
		}
		p.synthetic(b, mib)
	}
	p.pack(b)
	for i := range 2 {
		benchRun(b, "zstd", "-q", "-3", "-T2", "-f", "-k", p.name(i))
		benchRun(b, "bmaptool", "-q", "create", "-o", p.name(i)+".bmap", p.name(i))
		benchRun(b, "casync", "make", "--store="+filepath.Join(dir, "store"), p.name(i)+".caibx", p.name(i))
	}
	benchDo(b, os.WriteFile(kept, benchMust(json.Marshal(p))(b), 0o644))
	return p
}

// current tells whether this recast reads the difference that an earlier one made.
func (p *benchPair) current(b *testing.B) bool {
	b.Helper()
	read := func(d inventory.Digest) []byte { return benchMust(os.ReadFile(filepath.Join(p.dir, d.Hex())))(b) }
	m := benchMust(pack.ParseManifest(read(p.Jobs[1].Manifest)))(b)
	x := benchMust(pack.ParseIndex(read(p.Jobs[1].Index), m))(b)
	_, err := pack.ParseDifference(read(p.Jobs[1].Difference.List), x)
	return err == nil
}

// debian takes the point release and the same with its userland brought up to date,
// if TestDebianReleasesMoveWhatChanged has built them.
func (p *benchPair) debian(b *testing.B) bool {
	b.Helper()
	cache := benchMust(filepath.Abs(e2eCache))(b)
	for i, name := range []string{"base", "userland"} {
		path, err := osPath(OSOptions{Kind: OSDebian, CacheDir: cache, Variant: name, Frozen: frozenDebian})
		if err != nil {
			return false
		}
		img, err := osCached(path)
		if err != nil {
			return false
		}
		benchRun(b, "cp", "--sparse=always", img.Path, p.name(i))
		p.Size[i] = img.Size
	}
	p.What = "two releases of Debian, their userlands apart"
	return true
}

// synthetic makes disks of up to so many MiB of this machine's own files twice.
func (p *benchPair) synthetic(b *testing.B, mib int64) {
	b.Helper()
	tree := filepath.Join(b.TempDir(), "tree")
	files := benchTree(b, tree, mib<<20)
	p.What = fmt.Sprintf("%d files, 4 %% of them apart", len(files))
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range 2 {
		if i == 1 { // 3 % of the files change, 0.5 % go and come each
			for _, f := range files {
				switch n := rng.IntN(1000); {
				case n < 30:
					old := benchMust(os.ReadFile(f))(b)
					benchDo(b, os.WriteFile(f, append([]byte("changed\n"), old...), 0o644))
				case n < 35:
					benchDo(b, os.Remove(f))
				case n < 40:
					old := benchMust(os.ReadFile(f))(b)
					benchDo(b, os.WriteFile(f+".new", append([]byte("new\n"), old...), 0o644))
				}
			}
		}
		p.Size[i] = (mib*3/2 + 64) << 20
		benchDisk(b, p.name(i), p.Size[i], tree)
	}
}

// pack makes what is served of the two images.
func (p *benchPair) pack(b *testing.B) {
	b.Helper()
	var x [2]*pack.Index
	for i := range 2 {
		f := benchMust(os.Open(p.name(i)))(b)
		temp := benchMust(os.Create(filepath.Join(p.dir, "pack")))(b)
		var err error
		x[i], err = pack.Write(context.Background(), temp, f, pack.WriteOptions{})
		benchDo(b, err)
		benchDo(b, temp.Close())
		f.Close()
		m := x[i].Manifest
		benchDo(b, os.Rename(temp.Name(), filepath.Join(p.dir, m.Pack.Hex())))
		p.Jobs[i] = inventory.JobImage{
			Digest: inventory.NewDigest(m.Digest), Size: m.Size, Pack: inventory.NewDigest(m.Pack),
			Manifest: p.serve(b, m.Encode()),
		}
	}
	m := x[1].Manifest
	packed := benchMust(os.Open(filepath.Join(p.dir, m.Pack.Hex())))(b)
	defer packed.Close()
	var diff bytes.Buffer
	start := time.Now()
	d, err := pack.WriteDifference(context.Background(), &diff, x[0], x[1], func(i int) ([]byte, error) { return m.ReadChunk(packed, i) })
	benchDo(b, err)
	p.Jobs[1].Index = p.serve(b, x[1].Encode())
	p.Jobs[1].Difference = &inventory.JobDifference{
		List: p.serve(b, d.Encode()), Pack: p.serve(b, diff.Bytes()), From: p.Jobs[0].Digest, FromSize: p.Jobs[0].Size,
	}
	data := 0
	for k := range x[1].Blocks() {
		if x[1].Sum(k) != (pack.BlockSum{}) {
			data++
		}
	}
	moves := pack.NewPlan(pack.Expect(x[0], x[1]), d, math.MaxInt32)
	p.What += fmt.Sprintf("; image of %d MiB, %d MiB of it data, pack %d KiB; index %d KiB, difference %.1f %% of the blocks, %d KiB (%.1f %%), list %d KiB, made in %s; a re-image fetches %d KiB, writes %d MiB and keeps at most %d MiB aside",
		m.Size>>20, data>>8, m.PackSize>>10, len(x[1].Encode())>>10,
		100*float64(len(d.Blocks))/float64(data), d.PackSize>>10, 100*float64(d.PackSize)/float64(m.PackSize), len(d.Encode())>>10, time.Since(start).Round(time.Millisecond),
		moves.Fetched>>10, moves.Written>>20, moves.Slots>>8)
}

func (p *benchPair) serve(b *testing.B, content []byte) inventory.Digest {
	d := inventory.DigestOf(content)
	benchDo(b, os.WriteFile(filepath.Join(p.dir, d.Hex()), content, 0o644))
	return d
}

// benchTree copies files of this machine to dir, at most so many bytes of them.
func benchTree(b *testing.B, dir string, most int64) (files []string) {
	b.Helper()
	var sum int64
	for _, root := range []string{"/usr/bin", "/usr/share", "/usr/lib"} {
		err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || !e.Type().IsRegular() {
				return nil
			}
			info, err := e.Info()
			if err != nil || info.Size() > most/20 || sum+info.Size() > most {
				return nil
			}
			content, err := os.ReadFile(path)
			if err != nil {
				return nil
			}
			to := filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				return err
			}
			files, sum = append(files, to), sum+info.Size()
			return os.WriteFile(to, content, 0o644)
		})
		benchDo(b, err)
	}
	return files
}

// benchDisk makes a disk image of one ext4 partition that holds the tree.
func benchDisk(b *testing.B, name string, size int64, tree string) {
	b.Helper()
	end := size - 4<<20
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"),
		[]pack.Partition{{Type: pack.TypeLinux.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "root", Start: 1 << 20, End: end}})
	benchDo(b, err)
	f := benchMust(os.Create(name))(b)
	defer f.Close()
	benchDo(b, f.Truncate(size))
	_, err = f.WriteAt(first, 0)
	benchDo(b, err)
	_, err = f.WriteAt(last, size-1<<20)
	benchDo(b, err)
	cmd := exec.Command("mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "1", "-U", "cccccccc-2222-4333-8444-555555555555",
		"-E", "offset=1048576,hash_seed=dddddddd-2222-4333-8444-555555555555,lazy_itable_init=0,lazy_journal_init=0,nodiscard",
		"-d", tree, name, fmt.Sprintf("%dk", (end-1<<20)>>10))
	cmd.Env = append(os.Environ(), "E2FSPROGS_FAKE_TIME=1700000000")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
}

func benchDo(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func benchMust[T any](v T, err error) func(b *testing.B) T {
	return func(b *testing.B) T { b.Helper(); benchDo(b, err); return v }
}

func benchRun(b *testing.B, name string, args ...string) {
	b.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		b.Fatalf("%s: %v: %s", name, err, out)
	}
}

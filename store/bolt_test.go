package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

// oneLine holds a message for the operator: what, where, what to do next.
func oneLine(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if strings.Contains(err.Error(), "\n") || len(err.Error()) > 400 {
		t.Errorf("not one line: %q", err)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("%q does not name %q", err, p)
		}
	}
}

func filled(t testing.TB, path string) {
	t.Helper()
	s, err := OpenBolt(path, BoltOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		var ops []Op
		for j := range 10 {
			ops = append(ops, put(fmt.Sprintf("/k/%d/%d", i, j), strings.Repeat("v", i*j*9)))
		}
		commit(t, s, ops...)
	}
	if _, err := s.Grant(ctx(t), time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "var", "lib", "recast.db")
	filled(t, path)
	for p, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): 0o700} {
		info, err := os.Stat(p)
		if err != nil {
			t.Fatal(err)
		}
		expect(t, p, want, info.Mode().Perm())
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	filled(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "mode after it was opened again", 0o600, info.Mode().Perm())
	left, err := filepath.Glob(path + ".*")
	if err != nil || len(left) > 0 {
		t.Fatalf("left behind: %q, %v", left, err)
	}
}

func TestSecondServerIsToldWhoHoldsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recast.db")
	s, err := OpenBolt(path, BoltOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenBolt(path, BoltOptions{Timeout: 50 * time.Millisecond})
	oneLine(t, err, path, "another recast", "API")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = OpenBolt(path, BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	_, err := OpenBolt(filepath.Join(dir, "none"), BoltOptions{MustExist: true})
	oneLine(t, err, "none", "recast serve")
	for name, content := range map[string][]byte{
		"empty": nil, "text": []byte("hello"), "long": bytes.Repeat([]byte("long text "), 10000),
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := OpenBolt(path, BoltOptions{})
		oneLine(t, err, path, "damaged", "recast store restore")
		after, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(after, content) {
			t.Errorf("%s was changed (%v)", name, err)
		}
	}
	_, err = OpenBolt(filepath.Join(dir, "text", "file"), BoltOptions{})
	oneLine(t, err, "not a directory")
	_, err = OpenBolt(dir, BoltOptions{})
	oneLine(t, err, "not a regular file")

	// A bbolt file of somebody else.
	other := filepath.Join(dir, "other")
	db, err := bbolt.Open(other, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("x")); return err }), db.Close())
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenBolt(other, BoltOptions{})
	oneLine(t, err, other, "not a recast store")
}

// TestCommitsThatComeAtOnceShareATransaction, whose cost is mostly the disk's.
func TestCommitsThatComeAtOnceShareATransaction(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // the hardest case: who asks and who commits take turns
	s, err := openBolt(filepath.Join(t.TempDir(), "recast.db"), BoltOptions{NoSync: true, Timeout: time.Second, retry: time.Second, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	transactions := func() (id int) {
		if err := s.db.View(func(tx *bbolt.Tx) error { id = tx.ID(); return nil }); err != nil {
			t.Fatal(err)
		}
		return id
	}
	before := transactions()
	const n = 200
	start := make(chan struct{})
	var work sync.WaitGroup
	for i := range n {
		work.Go(func() {
			<-start
			if _, err := s.Commit(t.Context(), Op{Key: fmt.Sprint("/k/", i), Value: []byte("v")}); err != nil {
				t.Error(err)
			}
		})
	}
	close(start)
	work.Wait()
	if got := transactions() - before; got > n/10 { // a few, since Go may interrupt anybody
		t.Errorf("%d commits at once took %d transactions", n, got)
	}
}

func TestNewerFileIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recast.db")
	filled(t, path)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(db.Update(func(tx *bbolt.Tx) error {
		b, err := json.Marshal(map[string]any{"schema": schema + 1, "shape": "unknown"})
		if err != nil {
			return err
		}
		return tx.Bucket(bucketState).Put(keyState, seal(string(keyState), b))
	}), db.Close())
	if err != nil {
		t.Fatal(err)
	}
	_, err = OpenBolt(path, BoltOptions{})
	expectErr(t, "open", ErrNewer, err)
	oneLine(t, err, path, "schema 2", "update recast")
}

// Whatever bytes are hurt, the store either opens with every record as it was,
// or says so; it never panics, loops, or serves something else.
func TestDamagedFileIsRefusedOrWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "recast.db")
	filled(t, path)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := OpenBolt(path, BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := keys(t, s, "")
	s.Close()

	hurt := filepath.Join(dir, "hurt.db")
	try := func(what string, content []byte) (refused bool) {
		t.Helper()
		if err := os.WriteFile(hurt, content, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenBolt(hurt, BoltOptions{NoSync: true})
		if err != nil {
			oneLine(t, err, hurt, "damaged", "recast store restore")
			return true
		}
		defer s.Close()
		expect(t, what, want, keys(t, s, ""))
		commit(t, s, put("/after", "1"))
		return false
	}
	if try("unhurt", whole) {
		t.Fatal("the whole file was refused")
	}
	random := rand.New(rand.NewPCG(7, 7))
	rounds := 300
	if testing.Short() {
		rounds = 50
	}
	refused := 0
	for i := range rounds {
		content := bytes.Clone(whole)
		at := random.IntN(len(content))
		if i%2 == 0 { // the headers and element tables are where structure breaks
			at = at/4096*4096 + random.IntN(64)
		}
		content[at] ^= 1 << random.IntN(8)
		if try(fmt.Sprintf("bit flipped at %d", at), content) {
			refused++
		}
	}
	if refused == 0 {
		t.Fatal("no damage was ever noticed")
	}
	for range rounds / 10 {
		cut := random.IntN(len(whole))
		try(fmt.Sprintf("cut at %d", cut), whole[:cut])
		content := bytes.Clone(whole)
		at := random.IntN(len(content)/4096) * 4096
		clear(content[at : at+4096])
		try(fmt.Sprintf("page %d zeroed", at/4096), content)
	}
	// A page that shows fewer records than it holds is in order by itself.
	hidden := 0
	for at := 0; at < len(whole); at += 4096 {
		if flags, count := order.Uint16(whole[at+8:]), order.Uint16(whole[at+10:]); flags == pageLeaf && count > 1 {
			content := bytes.Clone(whole)
			order.PutUint16(content[at+10:], count-1)
			if try(fmt.Sprintf("last record of page %d hidden", at/4096), content) {
				hidden++
			}
		}
	}
	if hidden == 0 {
		t.Fatal("hidden records were never missed")
	}
	if !try("cut in the middle of a record", whole[:len(whole)/3]) {
		t.Fatal("a third of the file was opened")
	}
	t.Logf("%d of %d flipped bits were refused", refused, rounds)
}

// What the page check lets through, bbolt opens without a panic.
func FuzzCheckPages(f *testing.F) {
	path := filepath.Join(f.TempDir(), "recast.db")
	s, err := OpenBolt(path, BoltOptions{NoSync: true})
	if err != nil {
		f.Fatal(err)
	}
	for i := range 40 {
		commit(f, s, put(fmt.Sprintf("/k/%d", i), strings.Repeat("v", i*i)))
	}
	s.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole, uint32(0), byte(0))
	f.Add(whole[:4096], uint32(100), byte(1))
	// Most of the file is not structure: the search gets one byte to place
	// beside what it mutates by itself.
	f.Fuzz(func(t *testing.T, b []byte, at uint32, with byte) {
		b = bytes.Clone(b)
		if len(b) > 0 {
			b[int(at)%len(b)] ^= with
		}
		for i := 0; i+4096 <= len(b) && i <= 4096; i += 4096 {
			sum := fnv.New64a() // past the door
			sum.Write(b[i+16 : i+72])
			order.PutUint64(b[i+72:], sum.Sum64())
		}
		if _, err := checkPages(bytes.NewReader(b), int64(len(b))); err != nil {
			return
		}
		path := filepath.Join(t.TempDir(), "recast.db")
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := OpenBolt(path, BoltOptions{NoSync: true})
		if err != nil {
			return
		}
		if _, err := s.Commit(ctx(t), put("/after", "1")); err != nil {
			t.Fatal(err)
		}
		s.Close()
	})
}

func TestTwoProcessesMakeOneStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "recast.db")
	a := &image{state: fileState{Schema: schema, Epoch: "a"}}
	if err := createFile(path, a, true); err != nil {
		t.Fatal(err)
	}
	if err := createFile(path, &image{state: fileState{Schema: schema, Epoch: "b"}}, true); !errors.Is(err, os.ErrExist) {
		t.Fatalf("the second maker was told %v", err)
	}
	s, err := OpenBolt(path, BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	expect(t, "epoch", "a", s.Epoch())
}

func TestIndexAgreesWithSortedMap(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 3))
	var x index
	model := map[string]*Record{}
	for i := range 60000 {
		key := fmt.Sprintf("/%d/%d", random.IntN(8), random.IntN(3000))
		if random.IntN(3) == 0 {
			x.delete(key)
			delete(model, key)
		} else {
			r := &Record{Key: key, Revision: int64(i)}
			x.put(r)
			model[key] = r
		}
		if i%5000 == 0 {
			checkIndex(t, &x, model)
		}
	}
	checkIndex(t, &x, model)
	for key := range model {
		x.delete(key)
	}
	checkIndex(t, &x, nil)
	if len(x.blocks) != 0 {
		t.Fatalf("%d blocks are left", len(x.blocks))
	}
}

func checkIndex(t *testing.T, x *index, model map[string]*Record) {
	t.Helper()
	for _, prefix := range []string{"", "/", "/3/", "/3/1", "/9", "a"} {
		want := map[string]*Record{}
		for k, r := range model {
			if strings.HasPrefix(k, prefix) {
				want[k] = r
			}
		}
		last := ""
		got := x.list(prefix)
		for _, r := range got {
			if r.Key <= last || want[r.Key] != r || x.get(r.Key) != r {
				t.Fatalf("prefix %q: %q after %q", prefix, r.Key, last)
			}
			last = r.Key
		}
		if len(got) != len(want) || x.count != len(model) {
			t.Fatalf("prefix %q: %d records, want %d; count %d, want %d", prefix, len(got), len(want), x.count, len(model))
		}
	}
}

package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sample fills a store with records of all sorts, one of them leased.
func sample(t testing.TB, s Store) {
	t.Helper()
	for i := range 40 {
		commit(t, s, put(fmt.Sprintf("/recast/a/%d", i), strings.Repeat("v", i*i)), put(fmt.Sprintf("/recast/b/%d", i%7), fmt.Sprint(i)))
	}
	commit(t, s, put("/recast/<odd> & \"ü\"\n", "\x00\xff"), Op{Key: "/recast/empty", Value: []byte{}, If: Any}, del("/recast/a/3"))
	commit(t, s, put("/recast/big", strings.Repeat("x", MaxValue)))
	id, err := s.Grant(ctx(t), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, s, Op{Key: "/recast/owner", Value: []byte("us"), If: Any, Lease: id})
}

func unleased(t testing.TB, s Store) (records []Record) {
	t.Helper()
	all, _, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range all {
		if r.Lease == 0 {
			r.Value = append([]byte{}, r.Value...)
			records = append(records, r)
		}
	}
	return records
}

func backup(t testing.TB, s Store) []byte {
	t.Helper()
	var b bytes.Buffer
	n, err := Backup(ctx(t), s, &b)
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "records backed up", len(unleased(t, s)), n)
	return b.Bytes()
}

func restored(t testing.TB, b []byte) Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "new", "recast.db")
	if _, err := Restore(ctx(t), bytes.NewReader(b), path, nil); err != nil {
		t.Fatal(err)
	}
	s, err := OpenBolt(path, BoltOptions{MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestRestoreBringsAllBackUnderAnotherEpoch(t *testing.T) {
	s := testStore(t)
	sample(t, s)
	b := backup(t, s)
	again := restored(t, b)
	expect(t, "records", unleased(t, s), unleased(t, again))
	if again.Epoch() == s.Epoch() || len(again.Epoch()) != len(s.Epoch()) {
		t.Fatalf("epoch %q after %q", again.Epoch(), s.Epoch())
	}
	_, before, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if r := commit(t, again, put("/next", "1")); r != before+1 {
		t.Fatalf("revision %d after %d", r, before)
	}
	if again := restored(t, backup(t, restored(t, b))); len(unleased(t, again)) != len(unleased(t, s)) {
		t.Fatal("a backup of a restored store lost records")
	}
	empty := restored(t, backup(t, testStore(t)))
	expect(t, "records of an empty store", 0, len(unleased(t, empty)))
}

func TestRestoreNeverTouchesAStore(t *testing.T) {
	s := testStore(t)
	b := backup(t, s)
	path := filepath.Join(t.TempDir(), "recast.db")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Restore(ctx(t), bytes.NewReader(b), path, nil)
	expectErr(t, "restore", fs.ErrExist, err)
	oneLine(t, err, path, "move it away")
	content, err := os.ReadFile(path)
	if err != nil || string(content) != "precious" {
		t.Fatalf("%q, %v", content, err)
	}
}

func TestHurtBackupIsRefusedAndLeavesNothing(t *testing.T) {
	s := testStore(t)
	for i := range 20 {
		commit(t, s, put(fmt.Sprintf("/k/%02d", i), strings.Repeat("v", i)))
	}
	whole := backup(t, s)
	dir := t.TempDir()
	refuse := func(what string, b []byte) {
		t.Helper()
		path := filepath.Join(dir, "recast.db")
		_, err := Restore(ctx(t), bytes.NewReader(b), path, nil)
		if err == nil {
			t.Fatalf("%s was restored", what)
		}
		oneLine(t, err, path)
		left, err := os.ReadDir(dir)
		if err != nil || len(left) > 0 {
			t.Fatalf("%s left %v (%v)", what, left, err)
		}
	}
	for n := range whole {
		if n%7 == 0 || n > len(whole)-5 {
			refuse(fmt.Sprintf("the first %d bytes", n), whole[:n])
		}
	}
	random := rand.New(rand.NewPCG(5, 5))
	for range 500 {
		b := bytes.Clone(whole)
		at := random.IntN(len(b))
		b[at] ^= 1 << random.IntN(8)
		refuse(fmt.Sprintf("a bit flipped at %d", at), b)
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	refuse("one without its third line", bytes.Join(append(append([][]byte{}, lines[:2]...), lines[3:]...), nil))
	refuse("two in one", append(bytes.Clone(whole), whole...))
	refuse("one with a tail", append(bytes.Clone(whole), '\n'))
	refuse("an endless line", bytes.Repeat([]byte("x"), 2*backupLine))

	_, err := Restore(ctx(t), strings.NewReader(`{"recastBackup":2,"shape":"unknown"}`+"\n"), filepath.Join(dir, "recast.db"), nil)
	expectErr(t, "a newer backup", ErrNewer, err)
	_, err = Restore(ctx(t), strings.NewReader("-- SQL dump\n"), filepath.Join(dir, "recast.db"), nil)
	oneLine(t, err, "does not begin like a backup")
}

func TestCopyBringsAllAndRefusesOthers(t *testing.T) {
	from, to := testStore(t), testStore(t)
	sample(t, from)
	judgeCopy(t, from, to)
	// Once more is no harm; after a change of either it is refused.
	n, err := Copy(ctx(t), from, to)
	expect(t, "copied again", len(unleased(t, from)), n)
	if err != nil {
		t.Fatal(err)
	}
	commit(t, to, put("/recast/a/1", "changed"))
	_, err = Copy(ctx(t), from, to)
	oneLine(t, err, "/recast/a/1", "empty store")

	half := testStore(t)
	commit(t, half, put("/recast/a/1", "v"))
	if _, err := Copy(ctx(t), from, half); err != nil {
		t.Fatal(err)
	}
	expect(t, "an interrupted copy goes on", len(unleased(t, from)), len(unleased(t, half)))
}

func judgeCopy(t *testing.T, from, to Store) {
	t.Helper()
	n, err := Copy(ctx(t), from, to)
	if err != nil {
		t.Fatal(err)
	}
	a, b := unleased(t, from), unleased(t, to)
	expect(t, "copied", len(a), n)
	for i := range a {
		a[i].Revision = b[i].Revision // each store counts for itself
	}
	expect(t, "records", a, b)
}

func TestCopyBetweenEngines(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	file := testStore(t)
	sample(t, file)
	cluster := server.open(t, 0, 0)
	judgeCopy(t, file, cluster)
	judgeCopy(t, cluster, testStore(t))
	again := restored(t, backup(t, cluster))
	expect(t, "records", unleased(t, cluster), unleased(t, again))
}

func FuzzReadBackup(f *testing.F) {
	s := testStore(f)
	commit(f, s, put("/a", "1"), put("/b/<ü>", "\x00"))
	commit(f, s, Op{Key: "/c", Value: []byte{}, If: Any})
	whole := backup(f, s)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add([]byte(`{"recastBackup":1,"epoch":"","revision":1}` + "\n"))
	f.Add([]byte(`{"recastBackup":1,"epoch":"","revision":9}` + "\n" + `{"k":"/a","v":null,"r":1}` + "\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(b []byte) {
			m, err := readBackup(context.Background(), bytes.NewReader(b))
			if err != nil {
				if strings.Contains(err.Error(), "\n") {
					t.Fatalf("not one line: %q", err)
				}
				return
			}
			// What was accepted can be written and read again, and is the same.
			var records []Record
			for _, r := range m.records.list("") {
				records = append(records, *r)
			}
			var out bytes.Buffer
			if _, err := writeBackup(context.Background(), &out, backupHeader{Version: backupVersion, Revision: m.state.Revision}, records); err != nil {
				t.Fatal(err)
			}
			again, err := readBackup(context.Background(), &out)
			if err != nil {
				t.Fatalf("written again it is refused: %v", err)
			}
			expect(t, "records", m.records.list(""), again.records.list(""))
		}
		check(b)
		// The same with a trailer that fits, so that the digest does not stop
		// the search at the door.
		lines := bytes.Count(b, []byte("\n")) - 1
		check(append(bytes.Clone(b), fmt.Sprintf(`{"records":%d,"sha256":"%x"}`+"\n", lines, sha256.Sum256(b))...))
	})
}

func TestBackupStopsWithItsWriter(t *testing.T) {
	s := testStore(t)
	sample(t, s)
	_, err := Backup(ctx(t), s, failingWriter{})
	expectErr(t, "backup", errNoRoom, err)
}

var errNoRoom = errors.New("no room")

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, errNoRoom }

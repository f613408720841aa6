package store

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// engine is what the suite needs to know of an engine.
type engine struct {
	// setup, where set, starts what all tests of the engine share.
	setup func(t *testing.T)
	apart bool // its stores share nothing
	// open gives a store without records; a buffer of 0 is the default.
	open func(t *testing.T, buffer int) Store
	// restart ends whatever serves s in the ordinary way and opens its data again.
	restart func(t *testing.T, s Store) Store
	// crash runs hammer on a new store, ends the process that serves it by
	// SIGKILL at a random moment, and gives what was acknowledged and the
	// store as it stands after a new start.
	crash func(t *testing.T) (acked []byte, s Store)
	// rounds of crashing
	rounds int
}

func engines() map[string]engine {
	return map[string]engine{"bolt": boltEngine(), "etcd": etcdEngine()}
}

func TestContract(t *testing.T) {
	suite := []struct {
		name string
		test func(*testing.T, engine)
	}{
		{"PutThenGetListDelete", testCRUD},
		{"ConditionsDecideOverTheWholeTransaction", testConditions},
		{"CheckFencesWithoutWriting", testCheck},
		{"RevisionRisesWithEveryChangeOnly", testRevision},
		{"RefusesWhatTheOtherEngineCouldNotTake", testLimits},
		{"EveryConcurrentCommitIsCountedOnce", testConcurrent},
		{"OneOfManyCreatorsWins", testCreators},
		{"WatchIsSnapshotThenChangesInOrder", testWatch},
		{"WatchersSeeWhatIsStored", testWatchConverges},
		{"SlowWatchIsToldToResync", testSlowWatch},
		{"WatchEndsWithItsContext", testWatchEnds},
		{"LeaseEndTakesItsRecords", testLeaseExpiry},
		{"RevokeTakesItsRecords", testRevoke},
		{"PutWithoutLeaseDetaches", testDetach},
		{"RestartKeepsAll", testRestart},
		{"CloseRefusesEverything", testClose},
		{"KillKeepsWhatWasAcknowledged", testKill},
	}
	for name, e := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if e.setup != nil {
				e.setup(t)
			}
			for _, s := range suite {
				t.Run(s.name, func(t *testing.T) {
					if e.apart {
						t.Parallel()
					}
					s.test(t, e)
				})
			}
		})
	}
}

const long = 20 * time.Second // for what must happen; nothing waits for it to pass

func ctx(t testing.TB) context.Context {
	c, cancel := context.WithTimeout(context.Background(), 2*long)
	t.Cleanup(cancel)
	return c
}

func put(key, value string) Op            { return Op{Key: key, Value: []byte(value), If: Any} }
func putIf(key, value string, r int64) Op { return Op{Key: key, Value: []byte(value), If: r} }
func del(key string) Op                   { return Op{Key: key, If: Any} }

func commit(t testing.TB, s Store, ops ...Op) int64 {
	t.Helper()
	r, err := s.Commit(ctx(t), ops...)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return r
}

// keys gives "key=value" of all records under prefix.
func keys(t testing.TB, s Store, prefix string) []string {
	t.Helper()
	records, _, err := s.List(ctx(t), prefix)
	if err != nil {
		t.Fatalf("list: %v", err)
	}
	out := []string{}
	for _, r := range records {
		out = append(out, r.Key+"="+string(r.Value))
	}
	return out
}

func expect[T any](t testing.TB, what string, want, got T) {
	t.Helper()
	if reflect.DeepEqual(want, got) { // much faster than Diff on large records
		return
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func expectErr(t testing.TB, what string, want, got error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Fatalf("%s: want %q, got %v", what, want, got)
	}
}

func testCRUD(t *testing.T, e engine) {
	s := e.open(t, 0)
	if _, err := s.Get(ctx(t), "/a"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("get from an empty store: %v", err)
	}
	value := []byte("1")
	r1, err := s.Commit(ctx(t), Op{Key: "/a/x", Value: value, If: 0})
	if err != nil {
		t.Fatal(err)
	}
	value[0] = '!' // the caller's buffer stays the caller's
	got, err := s.Get(ctx(t), "/a/x")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "get", Record{Key: "/a/x", Value: []byte("1"), Revision: r1}, got)

	r2 := commit(t, s, put("/b", "4"), Op{Key: "/a/empty", Value: []byte{}, If: Any}, put("/a/y", "2"), put("/a0", "3"))
	records, at, err := s.List(ctx(t), "/a/")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "revision of the list", r2, at)
	if len(records) != 3 || records[0].Key != "/a/empty" || records[1].Revision != r1 || records[2].Revision != r2 {
		t.Fatalf("list: %+v", records)
	}
	expect(t, "all", []string{"/a/empty=", "/a/x=1", "/a/y=2", "/a0=3", "/b=4"}, keys(t, s, ""))

	commit(t, s, del("/a/x"), put("/b", "5"))
	expect(t, "after the delete", []string{"/a/empty=", "/a/y=2", "/a0=3", "/b=5"}, keys(t, s, ""))
	expect(t, "nothing there", []string{}, keys(t, s, "/c"))
	if s.Epoch() == "" {
		t.Fatal("the store has no epoch")
	}
	if err := s.Writable(); err != nil {
		t.Fatalf("writable: %v", err)
	}
}

func testConditions(t *testing.T, e engine) {
	s := e.open(t, 0)
	r1 := commit(t, s, putIf("/a", "1", 0))
	r2 := commit(t, s, putIf("/a", "2", r1))
	for name, ops := range map[string][]Op{
		"exists already":         {putIf("/a", "x", 0)},
		"older revision":         {putIf("/a", "x", r1)},
		"revision of nothing":    {putIf("/b", "x", r1)},
		"delete of an older":     {{Key: "/a", If: r1}},
		"second operation fails": {put("/c", "x"), putIf("/a", "x", r1)},
		"first operation fails":  {putIf("/a", "x", 0), put("/d", "x")},
	} {
		_, err := s.Commit(ctx(t), ops...)
		if !errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	expect(t, "untouched", []string{"/a=2"}, keys(t, s, ""))
	commit(t, s, Op{Key: "/a", If: r2}, Op{Key: "/b", If: 0}, putIf("/c", "1", 0))
	expect(t, "after", []string{"/c=1"}, keys(t, s, ""))
}

func testCheck(t *testing.T, e engine) {
	s := e.open(t, 0)
	r1 := commit(t, s, put("/owner", "us"))
	check := Op{Key: "/owner", If: r1, Check: true}
	commit(t, s, check, put("/effect", "1"))
	owner, err := s.Get(ctx(t), "/owner")
	if err != nil || owner.Revision != r1 {
		t.Fatalf("the checked record changed: %+v, %v", owner, err)
	}
	commit(t, s, put("/owner", "them"))
	_, err = s.Commit(ctx(t), check, put("/effect", "2"))
	expectErr(t, "fenced", ErrConflict, err)
	expect(t, "after", []string{"/effect=1", "/owner=them"}, keys(t, s, ""))
}

func testRevision(t *testing.T, e engine) {
	s := e.open(t, 0)
	last := commit(t, s, put("/a", "1"))
	for i, ops := range [][]Op{{put("/a", "1")}, {put("/b", "1"), put("/c", "1")}, {del("/a")}} {
		r := commit(t, s, ops...)
		if r != last+1 {
			t.Fatalf("commit %d: revision %d after %d", i, r, last)
		}
		last = r
	}
	for i, ops := range [][]Op{nil, {del("/a")}, {{Key: "/none", If: 0}}, {{Key: "/b", If: Any, Check: true}}} {
		if r := commit(t, s, ops...); r != last {
			t.Fatalf("commit %d changed nothing, but the revision went from %d to %d", i, last, r)
		}
	}
	_, at, err := s.List(ctx(t), "/")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "list's revision", last, at)
}

func testLimits(t *testing.T, e engine) {
	s := e.open(t, 0)
	var many []Op
	for i := range MaxOps + 1 {
		many = append(many, put(fmt.Sprintf("/k%03d", i), "v"))
	}
	big := strings.Repeat("x", MaxValue)
	for name, ops := range map[string][]Op{
		"no key":            {put("", "v")},
		"long key":          {put("/"+strings.Repeat("k", MaxKey), "v")},
		"NUL":               {put("/a\x00b", "v")},
		"not UTF-8":         {put("/a\xff", "v")},
		"the store's own":   {put("/recast/.store/epoch", "v")},
		"large value":       {put("/a", big+"x")},
		"too many":          many,
		"too large in all":  {put("/a", big), put("/b", big)},
		"twice":             {put("/a", "1"), put("/a", "2")},
		"unknown condition": {putIf("/a", "1", -2)},
		"unknown lease":     {{Key: "/a", Value: []byte("v"), If: Any, Lease: 4711}},
		"delete with lease": {{Key: "/a", If: Any, Lease: 4711}},
	} {
		if _, err := s.Commit(ctx(t), ops...); err == nil || errors.Is(err, ErrConflict) {
			t.Errorf("%s: %v", name, err)
		}
	}
	expect(t, "nothing written", []string{}, keys(t, s, ""))
	commit(t, s, many[:MaxOps]...)
	commit(t, s, put("/big", big))
	if n := len(keys(t, s, "")); n != MaxOps+1 {
		t.Fatalf("%d records", n)
	}
}

// Counters in one record, raised by compare-and-put from many sides, end at the
// number of raises.
func testConcurrent(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	commit(t, s, put("/n", "0"))
	const workers, raises = 8, 20
	var wg sync.WaitGroup
	var mu sync.Mutex
	revisions := map[int64]bool{}
	for w := range workers {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for i := 0; i < raises; {
				r, err := s.Get(c, "/n")
				if err != nil {
					t.Error(err)
					return
				}
				var n int
				fmt.Sscan(string(r.Value), &n)
				at, err := s.Commit(c, putIf("/n", fmt.Sprint(n+1), r.Revision), putIf(fmt.Sprintf("/own/%d/%d", w, i), "", 0))
				if errors.Is(err, ErrConflict) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if revisions[at] {
					t.Errorf("two commits got revision %d", at)
				}
				revisions[at] = true
				mu.Unlock()
				i++
			}
		}()
	}
	wg.Wait()
	r, err := s.Get(c, "/n")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "counter", fmt.Sprint(workers*raises), string(r.Value))
	expect(t, "own records", workers*raises, len(keys(t, s, "/own/")))
}

func testCreators(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	for round := range 20 {
		key := fmt.Sprintf("/once/%d", round)
		var wg sync.WaitGroup
		var mu sync.Mutex
		won := 0
		for w := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				_, err := s.Commit(c, putIf(key, fmt.Sprint(w), 0))
				switch {
				case err == nil:
					mu.Lock()
					won++
					mu.Unlock()
				case !errors.Is(err, ErrConflict):
					t.Error(err)
				}
			}()
		}
		wg.Wait()
		expect(t, "winners", 1, won)
	}
}

// next waits for one event.
func next(t testing.TB, w Watch) Event {
	t.Helper()
	select {
	case e, ok := <-w.Events:
		if !ok {
			t.Fatalf("the watch ended: %v", w.Err())
		}
		return e
	case <-time.After(long):
		t.Fatal("no event")
	}
	panic("unreachable")
}

func ended(t testing.TB, w Watch) error {
	t.Helper()
	for deadline := time.After(long); ; {
		select {
		case _, ok := <-w.Events:
			if !ok {
				return w.Err()
			}
		case <-deadline:
			t.Fatal("the watch does not end")
		}
	}
}

func testWatch(t *testing.T, e engine) {
	s := e.open(t, 0)
	r0 := commit(t, s, put("/m/1", "a"), put("/m/2", "b"), put("/n", "-"))
	w, err := s.Watch(ctx(t), "/m/")
	if err != nil {
		t.Fatal(err)
	}
	r1 := commit(t, s, put("/m/3", "c"), del("/m/1"), put("/n", "+"))
	r2 := commit(t, s, put("/m/3", "d"))
	commit(t, s, put("/n", "!"))
	r3 := commit(t, s, del("/m/3"))
	want := []Event{
		{Record: Record{Key: "/m/1", Value: []byte("a"), Revision: r0}},
		{Record: Record{Key: "/m/2", Value: []byte("b"), Revision: r0}},
		{Record: Record{Revision: r0}, Synced: true},
		{Record: Record{Key: "/m/3", Value: []byte("c"), Revision: r1}},
		{Record: Record{Key: "/m/1", Revision: r1}, Deleted: true},
		{Record: Record{Key: "/m/3", Value: []byte("d"), Revision: r2}},
		{Record: Record{Key: "/m/3", Revision: r3}, Deleted: true},
	}
	var got []Event
	for range want {
		got = append(got, next(t, w))
	}
	// The two changes of one transaction have no order among them.
	slices.SortFunc(got[3:5], func(a, b Event) int { return strings.Compare(b.Key, a.Key) })
	expect(t, "events", want, got)
}

// Whoever applies what a watch says has what a list says, from any start.
func testWatchConverges(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			random := rand.New(rand.NewPCG(1, uint64(w)))
			for i := range 150 {
				op := put(fmt.Sprintf("/r/%d", random.IntN(20)), fmt.Sprint(w, i))
				if random.IntN(4) == 0 {
					op.Value = nil
				}
				if _, err := s.Commit(c, op, put("/r/last", fmt.Sprint(w, i))); err != nil {
					t.Error(err)
				}
			}
		}()
	}
	var watches []Watch
	for range 5 {
		w, err := s.Watch(c, "/r/")
		if err != nil {
			t.Fatal(err)
		}
		watches = append(watches, w)
	}
	wg.Wait()
	end := commit(t, s, put("/r/end", "end"))
	want := keys(t, s, "/r/")
	slices.Sort(want)
	for _, w := range watches {
		seen := map[string]string{}
		var last int64
		synced := false
		for last < end {
			ev := next(t, w)
			switch {
			case ev.Synced:
				synced = true
			case ev.Deleted:
				delete(seen, ev.Key)
			default:
				seen[ev.Key] = string(ev.Value)
			}
			if synced && ev.Revision < last {
				t.Fatalf("revision %d after %d", ev.Revision, last)
			}
			if synced {
				last = ev.Revision
			}
		}
		got := []string{}
		for k, v := range seen {
			got = append(got, k+"="+v)
		}
		slices.Sort(got)
		expect(t, "what the watch saw", want, got)
	}
}

func testSlowWatch(t *testing.T, e engine) {
	s := e.open(t, 10)
	w, err := s.Watch(ctx(t), "/")
	if err != nil {
		t.Fatal(err)
	}
	fast, err := s.Watch(ctx(t), "/fast")
	if err != nil {
		t.Fatal(err)
	}
	if ev := next(t, fast); !ev.Synced {
		t.Fatalf("%+v", ev)
	}
	// Nobody reads w, and no commit waits for it.
	for i := range 300 {
		commit(t, s, put(fmt.Sprintf("/k/%d", i), "v"))
	}
	commit(t, s, put("/fast", "v"))
	expect(t, "the other watch", "/fast", next(t, fast).Key)
	expectErr(t, "the slow watch", ErrResync, ended(t, w))
	again, err := s.Watch(ctx(t), "/k/")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for !next(t, again).Synced {
		n++
	}
	expect(t, "records in the new snapshot", 300, n)
}

func testWatchEnds(t *testing.T, e engine) {
	s := e.open(t, 0)
	c, cancel := context.WithCancel(ctx(t))
	w, err := s.Watch(c, "/")
	if err != nil {
		t.Fatal(err)
	}
	next(t, w)
	cancel()
	if err := ended(t, w); err != nil {
		t.Fatalf("a cancelled watch says %v", err)
	}
}

func testLeaseExpiry(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	const ttl = 1500 * time.Millisecond
	dies, err := s.Grant(c, ttl)
	if err != nil {
		t.Fatal(err)
	}
	lives, err := s.Grant(c, ttl)
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	commit(t, s, Op{Key: "/l/a", Value: []byte("1"), If: 0, Lease: dies}, Op{Key: "/l/b", Value: []byte("1"), If: 0, Lease: dies},
		Op{Key: "/l/c", Value: []byte("1"), If: 0, Lease: lives}, put("/l/d", "1"))
	w, err := s.Watch(c, "/l/")
	if err != nil {
		t.Fatal(err)
	}
	alive, stop := context.WithCancel(c)
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for tick := time.NewTicker(ttl / 10); ; {
			select {
			case <-tick.C:
				if err := s.KeepAlive(c, lives); err != nil {
					t.Errorf("keep alive: %v", err)
				}
			case <-alive.Done():
				return
			}
		}
	}()
	for !next(t, w).Synced {
	}
	x, y := next(t, w), next(t, w)
	if took := time.Since(start); took < ttl-100*time.Millisecond {
		t.Errorf("the lease ended after %s", took)
	}
	if !x.Deleted || !y.Deleted || x.Revision != y.Revision {
		t.Fatalf("the lease's records went as %+v and %+v", x, y)
	}
	expect(t, "left", []string{"/l/c=1", "/l/d=1"}, keys(t, s, "/l/"))
	expectErr(t, "keep the ended lease alive", ErrNotFound, s.KeepAlive(c, dies))
	_, err = s.Commit(c, Op{Key: "/l/a", Value: []byte("2"), If: Any, Lease: dies})
	expectErr(t, "put under the ended lease", ErrNotFound, err)
	stop()
	wg.Wait()
	if ev := next(t, w); !ev.Deleted || ev.Key != "/l/c" {
		t.Fatalf("after the last keep alive: %+v", ev)
	}
}

func testRevoke(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	id, err := s.Grant(c, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var ops []Op
	for i := range 90 {
		ops = append(ops, Op{Key: fmt.Sprintf("/l/%d", i), Value: []byte("1"), If: 0, Lease: id})
	}
	commit(t, s, ops...)
	for i := range ops {
		ops[i].Key += "+" // more than one transaction's worth
	}
	commit(t, s, ops...)
	r, err := s.Get(c, "/l/7")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "the record's lease", id, r.Lease)
	if err := s.Revoke(c, id); err != nil {
		t.Fatal(err)
	}
	expect(t, "left", []string{}, keys(t, s, "/l/"))
	expectErr(t, "revoke again", ErrNotFound, s.Revoke(c, id))
	expectErr(t, "keep alive", ErrNotFound, s.KeepAlive(c, id))
	if _, err := s.Grant(c, 0); err == nil {
		t.Error("a lease of no time was granted")
	}
}

func testDetach(t *testing.T, e engine) {
	s := e.open(t, 0)
	c := ctx(t)
	id, err := s.Grant(c, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	leased := func(key string) Op { return Op{Key: key, Value: []byte("1"), If: Any, Lease: id} }
	commit(t, s, leased("/a"), leased("/b"), leased("/c"))
	commit(t, s, put("/a", "2"))
	commit(t, s, del("/b"))
	commit(t, s, put("/b", "3"))
	if err := s.Revoke(c, id); err != nil {
		t.Fatal(err)
	}
	expect(t, "left", []string{"/a=2", "/b=3"}, keys(t, s, ""))
}

func testRestart(t *testing.T, e engine) {
	s := e.open(t, 0)
	for i := range 200 {
		commit(t, s, put(fmt.Sprintf("/k/%d", i%50), strings.Repeat(fmt.Sprint(i), i*10)))
	}
	commit(t, s, del("/k/7"))
	id, err := s.Grant(ctx(t), 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	last := commit(t, s, Op{Key: "/leased", Value: []byte("1"), If: Any, Lease: id})
	before, _, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	epoch := s.Epoch()

	s = e.restart(t, s)
	after, at, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	expect(t, "records", before, after)
	expect(t, "epoch", epoch, s.Epoch())
	if at < last {
		t.Fatalf("the revision fell from %d to %d", last, at)
	}
	if next := commit(t, s, put("/k/0", "new")); next <= last {
		t.Fatalf("revision %d after %d", next, last)
	}
	if err := s.KeepAlive(ctx(t), id); err != nil {
		t.Fatalf("the lease did not survive: %v", err)
	}
	w, err := s.Watch(ctx(t), "/leased")
	if err != nil {
		t.Fatal(err)
	}
	for !next(t, w).Synced {
	}
	if ev := next(t, w); !ev.Deleted {
		t.Fatalf("%+v", ev)
	}
}

func testClose(t *testing.T, e engine) {
	s := e.open(t, 0)
	commit(t, s, put("/a", "1"))
	w, err := s.Watch(ctx(t), "/")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close again: %v", err)
	}
	expectErr(t, "watch", ErrClosed, ended(t, w))
	_, err = s.Get(ctx(t), "/a")
	expectErr(t, "get", ErrClosed, err)
	_, _, err = s.List(ctx(t), "/a")
	expectErr(t, "list", ErrClosed, err)
	_, err = s.Commit(ctx(t), put("/a", "2"))
	expectErr(t, "commit", ErrClosed, err)
	_, err = s.Watch(ctx(t), "/a")
	expectErr(t, "watch", ErrClosed, err)
	_, err = s.Grant(ctx(t), time.Second)
	expectErr(t, "grant", ErrClosed, err)
	expectErr(t, "keep alive", ErrClosed, s.KeepAlive(ctx(t), 1))
	expectErr(t, "revoke", ErrClosed, s.Revoke(ctx(t), 1))
	expectErr(t, "writable", ErrClosed, s.Writable())
}

// hammer commits pairs of records, every so often deletes a pair, and prints a
// line for every acknowledged commit, until a commit fails.
func hammer(s Store, out io.Writer) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range 8 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			for n := 0; ; n++ {
				v := fmt.Sprintf("%d %s", n, strings.Repeat("x", n*37%5000))
				ops := []Op{putIf(fmt.Sprintf("/a/%d/%d", w, n), v, 0), putIf(fmt.Sprintf("/b/%d/%d", w, n), v, 0), put(fmt.Sprintf("/n/%d", w), fmt.Sprint(n))}
				if n%5 == 4 {
					ops = append(ops, del(fmt.Sprintf("/a/%d/%d", w, n-4)), del(fmt.Sprintf("/b/%d/%d", w, n-4)))
				}
				r, err := s.Commit(context.Background(), ops...)
				if err != nil {
					return
				}
				mu.Lock()
				fmt.Fprintf(out, "%d %d %d\n", w, n, r)
				mu.Unlock()
			}
		}()
	}
	wg.Wait()
}

func testKill(t *testing.T, e engine) {
	rounds := e.rounds
	if testing.Short() {
		rounds = 2
	}
	total := 0
	for round := range rounds {
		acked, s := e.crash(t)
		total += bytes.Count(acked, []byte("\n"))
		judge(t, round, acked, s)
	}
	if total == 0 {
		t.Fatal("nothing was ever acknowledged")
	}
	t.Logf("%d rounds, %d acknowledged commits", rounds, total)
}

// judge holds a store after a crash against what hammer printed before it.
func judge(t *testing.T, round int, acked []byte, s Store) {
	t.Helper()
	records, at, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, r := range records {
		have[r.Key] = string(r.Value)
		if r.Revision > at {
			t.Fatalf("round %d: record %q has revision %d, the store %d", round, r.Key, r.Revision, at)
		}
	}
	last := map[int]int{}
	for w := range 8 {
		last[w] = -1
	}
	lines := bufio.NewScanner(bytes.NewReader(acked))
	for lines.Scan() {
		var w, n int
		var r int64
		if _, err := fmt.Sscan(lines.Text(), &w, &n, &r); err != nil {
			t.Fatalf("line %q: %v", lines.Text(), err)
		}
		last[w] = max(last[w], n)
		if r > at {
			t.Fatalf("round %d: revision %d was acknowledged, the store has %d", round, r, at)
		}
	}
	for w, acked := range last {
		stored := -1
		if v, ok := have[fmt.Sprintf("/n/%d", w)]; ok {
			fmt.Sscan(v, &stored)
		}
		// Each worker waits for its answer, so at most one more can have gone through.
		if stored < acked || stored > acked+1 {
			t.Fatalf("round %d: worker %d was acknowledged commit %d, the store has %d", round, w, acked, stored)
		}
		for n := 0; n <= stored+1; n++ {
			gone := n%5 == 0 && n+4 <= stored || n > stored
			a, inA := have[fmt.Sprintf("/a/%d/%d", w, n)]
			b, inB := have[fmt.Sprintf("/b/%d/%d", w, n)]
			if inA == gone || inB == gone || a != b {
				t.Fatalf("round %d: worker %d commit %d of %d (acknowledged %d): pair %t/%t equal %t", round, w, n, stored, acked, inA, inB, a == b)
			}
		}
	}
}

const childEnv = "RECAST_STORE_TEST_CHILD" // "role path"

func TestMain(m *testing.M) {
	if child := os.Getenv(childEnv); child != "" {
		role, path, _ := strings.Cut(child, " ")
		if err := children[role](path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// children are what this test binary does when it runs as a process of its own.
var children = map[string]func(path string) error{
	"hammer": func(path string) error {
		s, err := OpenBolt(path, BoltOptions{})
		if err != nil {
			return err
		}
		fmt.Println("open")
		hammer(s, os.Stdout)
		return nil
	},
}

func child(t testing.TB, role, path string, wrap ...string) *exec.Cmd {
	args := append(wrap, os.Args[0])
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+role+" "+path)
	cmd.Stderr = os.Stderr
	return cmd
}

func boltEngine() engine {
	open := func(t *testing.T, path string, opts BoltOptions) Store {
		t.Helper()
		s, err := OpenBolt(path, opts)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	return engine{
		apart:  true,
		rounds: 15,
		open: func(t *testing.T, buffer int) Store {
			return open(t, filepath.Join(t.TempDir(), "recast.db"), BoltOptions{WatchBuffer: buffer})
		},
		restart: func(t *testing.T, s Store) Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, s.(*boltStore).path, BoltOptions{})
		},
		crash: func(t *testing.T) ([]byte, Store) {
			path := filepath.Join(t.TempDir(), "recast.db")
			cmd := child(t, "hammer", path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			lines := bufio.NewReader(out)
			if line, err := lines.ReadString('\n'); line != "open\n" {
				cmd.Wait()
				t.Fatalf("the child said %q, %v", line, err)
			}
			timer := time.AfterFunc(rand.N(150*time.Millisecond), func() { cmd.Process.Kill() })
			defer timer.Stop()
			acked, _ := io.ReadAll(lines)
			cmd.Wait()
			// A line that was cut short in the pipe acknowledges nothing.
			acked = acked[:bytes.LastIndexByte(acked, '\n')+1]
			return acked, open(t, path, BoltOptions{})
		},
	}
}

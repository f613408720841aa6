package store

import (
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

func (e *etcdServer) holdAs(t *testing.T, name string) (*etcdStore, error) {
	t.Helper()
	s, err := OpenEtcd(ctx(t), EtcdOptions{Endpoints: []string{e.endpoint()}, Hold: name, HoldTime: 2 * time.Second, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { s.Close() })
	return s.(*etcdStore), nil
}

// awaitHold waits until name gets the store.
func (e *etcdServer) awaitHold(t *testing.T, name string) *etcdStore {
	t.Helper()
	for deadline := time.Now().Add(long); ; time.Sleep(20 * time.Millisecond) {
		s, err := e.holdAs(t, name)
		if err == nil {
			return s
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func (h *hold) confirmedUntil() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.until
}

func TestOneAtATimeHoldsACluster(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	first := server.awaitHold(t, "first (pid 1)")
	r := commit(t, first, put("/a", "1"))
	_, err := server.holdAs(t, "second")
	if !errors.Is(err, ErrHeld) {
		t.Fatalf("the second: %v", err)
	}
	oneLine(t, err, "first (pid 1)", "since")
	expect(t, "what the second left", []string{"/a=1"}, keys(t, first, ""))

	// The cluster confirms it again after the lease as it was granted has ended.
	end := first.hold.confirmedUntil().Add(first.opts.HoldTime)
	for deadline := time.Now().Add(long); first.hold.confirmedUntil().Before(end); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it is not kept alive: %v", first.Held())
		}
	}
	if _, err := server.holdAs(t, "second"); !errors.Is(err, ErrHeld) || first.Held() != nil {
		t.Fatalf("the second: %v, the first: %v", err, first.Held())
	}

	// A holder that sleeps through the end of its lease writes nothing, and says so.
	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Revoke(ctx(t), first.hold.lease); err != nil {
		t.Fatal(err)
	}
	second := server.awaitHold(t, "second")
	commit(t, second, putIf("/a", "2", r))
	_, err = first.Commit(ctx(t), put("/b", "from the first"))
	expectErr(t, "commit of the one before", ErrLost, err)
	expectErr(t, "held by the one before", ErrLost, first.Held())
	if err := first.Writable(); err == nil || !strings.Contains(err.Error(), "start this one again") {
		t.Errorf("writable: %v", err)
	}
	expect(t, "records", []string{"/a=2"}, keys(t, second, ""))

	// Closed in the ordinary way it lets the next one in at once.
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := server.holdAs(t, "third"); err != nil {
		t.Fatal(err)
	}
}

func TestAHolderWithoutItsClusterDoesNotAct(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	s := server.awaitHold(t, "first")
	server.kill()
	for deadline := time.Now().Add(long); s.Held() == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it still takes the store as its own")
		}
	}
	expectErr(t, "held", ErrUnavailable, s.Held())
	server.start()
	for deadline := time.Now().Add(long); s.Held() != nil && !errors.Is(s.Held(), ErrLost); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal(s.Held())
		}
	}
}

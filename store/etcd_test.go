package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// etcdServer is one member on unix sockets in a folder of its own.
type etcdServer struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	log bytes.Buffer
}

func startEtcd(t testing.TB) *etcdServer {
	t.Helper()
	if _, err := exec.LookPath("etcd"); err != nil {
		t.Skip("needs etcd (apt-get install etcd-server)")
	}
	dir, err := os.MkdirTemp("", "etcd-") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	e := &etcdServer{t: t, dir: dir}
	t.Cleanup(func() {
		e.kill()
		os.RemoveAll(dir)
	})
	e.start()
	return e
}

func (e *etcdServer) endpoint() string { return "unix://" + filepath.Join(e.dir, "localhost:1") }

func (e *etcdServer) start() {
	e.t.Helper()
	for _, socket := range []string{"localhost:1", "localhost:2"} {
		os.Remove(filepath.Join(e.dir, socket)) // left by a kill
	}
	e.log.Reset()
	e.cmd = exec.Command("etcd", "--data-dir", "data", "--logger", "zap", "--log-outputs", "stderr",
		"--heartbeat-interval", "20", "--election-timeout", "200",
		"--listen-client-urls", "unix://localhost:1", "--advertise-client-urls", "unix://localhost:1",
		"--listen-peer-urls", "unix://localhost:2", "--initial-advertise-peer-urls", "unix://localhost:2",
		"--initial-cluster", "default=unix://localhost:2")
	e.cmd.Dir = e.dir
	e.cmd.Stderr = &e.log
	if err := e.cmd.Start(); err != nil {
		e.t.Fatal(err)
	}
}

func (e *etcdServer) kill() {
	e.cmd.Process.Kill()
	e.cmd.Wait()
}

// open waits for the server. The timeout is short only where a test takes the
// server away: a busy machine stalls for a second now and then.
func (e *etcdServer) open(t testing.TB, buffer int, timeout time.Duration) Store {
	t.Helper()
	for deadline := time.Now().Add(long); ; {
		s, err := OpenEtcd(ctx(t), EtcdOptions{Endpoints: []string{e.endpoint()}, Timeout: timeout, WatchBuffer: buffer})
		if err == nil {
			t.Cleanup(func() { s.Close() })
			return s
		}
		if time.Now().After(deadline) {
			e.kill()
			t.Fatalf("%v\n%s", err, e.log.String())
		}
	}
}

// wipe deletes every record but the store's own.
func (e *etcdServer) wipe(t testing.TB) {
	t.Helper()
	s := e.open(t, 0, 0)
	defer s.Close()
	records, _, err := s.List(ctx(t), "")
	if err != nil {
		t.Fatal(err)
	}
	for len(records) > 0 {
		n := min(len(records), MaxOps)
		var ops []Op
		for _, r := range records[:n] {
			ops = append(ops, del(r.Key))
		}
		commit(t, s, ops...)
		records = records[n:]
	}
}

// etcdEngine uses one server for the whole suite.
func etcdEngine() engine {
	var server *etcdServer
	return engine{
		rounds: 5,
		setup:  func(t *testing.T) { server = startEtcd(t) },
		open: func(t *testing.T, buffer int) Store {
			server.wipe(t)
			return server.open(t, buffer, 0)
		},
		restart: func(t *testing.T, s Store) Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			server.kill()
			server.start()
			return server.open(t, 0, 0)
		},
		crash: func(t *testing.T) ([]byte, Store) {
			server.wipe(t)
			s := server.open(t, 0, time.Second)
			var acked bytes.Buffer
			var wg sync.WaitGroup
			wg.Add(1)
			go func() {
				defer wg.Done()
				hammer(s, &acked)
			}()
			time.Sleep(rand.N(300 * time.Millisecond)) // a random moment is the point
			server.kill()
			wg.Wait()
			s.Close()
			server.start()
			return acked.Bytes(), server.open(t, 0, 0)
		},
	}
}

func TestLostClusterEndsWatchesAndRecovers(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	s := server.open(t, 0, time.Second)
	c := ctx(t)
	commit(t, s, put("/a", "1"))
	w, err := s.Watch(c, "/")
	if err != nil {
		t.Fatal(err)
	}
	for !next(t, w).Synced {
	}
	server.kill()
	expectErr(t, "the watch", ErrResync, ended(t, w))
	expectErr(t, "writable", ErrUnavailable, s.Writable())
	// Each waits for its timeout, so all at once.
	var wg sync.WaitGroup
	for what, call := range map[string]func() error{
		"commit":     func() error { _, err := s.Commit(c, put("/a", "2")); return err },
		"get":        func() error { _, err := s.Get(c, "/a"); return err },
		"watch":      func() error { _, err := s.Watch(c, "/"); return err },
		"grant":      func() error { _, err := s.Grant(c, time.Second); return err },
		"keep alive": func() error { return s.KeepAlive(c, 1) },
	} {
		wg.Add(1)
		go func() {
			defer wg.Done()
			err := call()
			if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), server.endpoint()) {
				t.Errorf("%s says %v", what, err)
			}
		}()
	}
	wg.Wait()

	server.start()
	for s.Writable() != nil {
		if c.Err() != nil {
			t.Fatalf("the cluster is back, but: %v", s.Writable())
		}
		time.Sleep(10 * time.Millisecond)
	}
	commit(t, s, put("/a", "3"))
	expect(t, "records", []string{"/a=3"}, keys(t, s, ""))
}

func TestEtcdKeepsItsOwnRecordsApart(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	s := server.open(t, 0, 0)
	var wg sync.WaitGroup
	for i := range 26 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			var ops []Op
			for j := range MaxOps {
				ops = append(ops, put(fmt.Sprintf("/recast/%02d%03d", i, j), "v"))
			}
			if _, err := s.Commit(ctx(t), ops...); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for _, prefix := range []string{"", "/", "/recast/"} {
		records, _, err := s.List(ctx(t), prefix)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) != 26*MaxOps || records[0].Key != "/recast/00000" || records[len(records)-1].Key != "/recast/25099" {
			t.Fatalf("prefix %q: %d records", prefix, len(records))
		}
	}

	// Two servers, one store.
	other := server.open(t, 0, 0)
	expect(t, "epoch", s.Epoch(), other.Epoch())
	w, err := other.Watch(ctx(t), "/x")
	if err != nil {
		t.Fatal(err)
	}
	for !next(t, w).Synced {
	}
	r := commit(t, s, put("/x", "from the first"))
	expect(t, "seen by the second", Event{Record: Record{Key: "/x", Value: []byte("from the first"), Revision: r}}, next(t, w))

	raw, err := clientv3.New(clientv3.Config{Endpoints: []string{server.endpoint()}})
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	if _, err := raw.Put(ctx(t), epochKey, `{"schema":1,"epoch":"another"}`); err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(ctx(t), put("/x", "into another store"))
	expectErr(t, "commit into another store", ErrUnavailable, err)
	oneLine(t, err, "another store", "restart recast")
	if _, err := raw.Put(ctx(t), epochKey, `{"schema":2,"epoch":"x"}`); err != nil {
		t.Fatal(err)
	}
	_, err = OpenEtcd(ctx(t), EtcdOptions{Endpoints: []string{server.endpoint()}, Timeout: time.Second})
	expectErr(t, "open a newer store", ErrNewer, err)
}

func TestEtcdHistoryIsCompacted(t *testing.T) {
	t.Parallel()
	server := startEtcd(t)
	server.open(t, 0, 0).Close()
	s, err := OpenEtcd(ctx(t), EtcdOptions{Endpoints: []string{server.endpoint()}, Timeout: 500 * time.Millisecond, Compact: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	first := commit(t, s, put("/a", "0"))
	raw := s.(*etcdStore).client
	for i, c := 0, ctx(t); ; i++ {
		commit(t, s, put("/a", fmt.Sprint(i)))
		_, err := raw.Get(c, "/a", clientv3.WithRev(first))
		if err != nil && strings.Contains(err.Error(), "compacted") {
			break
		}
		if c.Err() != nil {
			t.Fatal("the history is never compacted")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := s.Get(ctx(t), "/a"); err != nil {
		t.Fatal(err)
	}
}

func TestNoClusterIsOneLine(t *testing.T) {
	start := time.Now()
	_, err := OpenEtcd(context.Background(), EtcdOptions{Endpoints: []string{"unix:///nonexistent/etcd"}, Timeout: 300 * time.Millisecond})
	oneLine(t, err, "/nonexistent/etcd", "etcd runs there")
	if !errors.Is(err, ErrUnavailable) || time.Since(start) > long {
		t.Fatal(err)
	}
	_, err = OpenEtcd(context.Background(), EtcdOptions{})
	oneLine(t, err, "endpoint")
}

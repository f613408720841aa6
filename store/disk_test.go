package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func init() {
	children["full"] = childFull
	children["limit"] = childLimit
	children["eio"] = childEIO
}

const testRetry = 150 * time.Millisecond

func runChild(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stderr = nil
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// A file system without room, in a mount namespace of the child's own.
func TestFullDiskMakesReadOnlyAndRecovers(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	cmd := child(t, "full", t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	runChild(t, cmd)
}

// The same seen by any user: the kernel refuses to let the file grow.
func TestFileThatMayNotGrowMakesReadOnlyAndRecovers(t *testing.T) {
	t.Parallel()
	runChild(t, child(t, "limit", t.TempDir()))
}

// Every few syncs fail, those behind the meta page included.
func TestFailedSyncLosesNothingAcknowledged(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace (apt-get install strace)")
	}
	if out, err := exec.Command("strace", "-f", "-qq", "-o", filepath.Join(t.TempDir(), "try"), "true").CombinedOutput(); err != nil {
		t.Skipf("needs ptrace (%s)", strings.TrimSpace(string(out)))
	}
	// A commit has two syncs; the second is the one behind the meta page.
	for _, when := range []string{"20+13", "21+13"} {
		t.Run(when, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			trace := filepath.Join(dir, "trace")
			runChild(t, child(t, "eio", dir, "strace", "-f", "-qq", "-o", trace, "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:error=EIO:when="+when))
			seen, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			if n := strings.Count(string(seen), "EIO"); n < 3 {
				t.Fatalf("only %d syncs failed", n)
			}
		})
	}
}

func childFull(dir string) error {
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return err
	}
	if err := unix.Mount("recast-test", dir, "tmpfs", 0, "size=3m"); err != nil {
		return err
	}
	ballast := filepath.Join(dir, "ballast")
	return outOfSpace(filepath.Join(dir, "recast.db"), func() error {
		return os.WriteFile(ballast, make([]byte, 2<<20), 0o600)
	}, func() error {
		return os.Remove(ballast)
	})
}

func childLimit(dir string) error {
	path := filepath.Join(dir, "recast.db")
	limit := func(size uint64) error {
		return unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: size, Max: unix.RLIM_INFINITY})
	}
	return outOfSpace(path, func() error { return limit(200 << 10) }, func() error { return limit(unix.RLIM_INFINITY) })
}

// outOfSpace runs a store until nothing fits, and on after there is room again.
func outOfSpace(path string, fill, free func() error) error {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s, err := OpenBolt(path, BoltOptions{retry: testRetry})
	if err != nil {
		return err
	}
	lease, err := s.Grant(c, 300*time.Millisecond)
	if err != nil {
		return err
	}
	if _, err := s.Commit(c, Op{Key: "/leased", Value: []byte("1"), If: 0, Lease: lease}); err != nil {
		return err
	}
	if err := fill(); err != nil {
		return err
	}
	acked := map[string]string{}
	var failure error
	for i := 0; failure == nil; i++ {
		if i > 10000 {
			return errors.New("the disk is never full")
		}
		op := put(fmt.Sprintf("/k/%d", i), strings.Repeat(fmt.Sprint(i%10), 20000))
		if _, failure = s.Commit(c, op); failure == nil {
			acked[op.Key] = string(op.Value)
		}
	}
	if len(acked) == 0 {
		return fmt.Errorf("nothing was written: %w", failure)
	}
	if !errors.Is(failure, ErrUnavailable) || !strings.Contains(failure.Error(), path) || !strings.Contains(failure.Error(), "space") {
		return fmt.Errorf("out of space, commit says %w", failure)
	}
	if err := s.Writable(); !errors.Is(err, ErrUnavailable) {
		return fmt.Errorf("out of space, writable says %w", err)
	}
	same := func(s Store, want map[string]string) error {
		records, _, err := s.List(c, "/k/")
		if err != nil {
			return err
		}
		have := map[string]string{}
		for _, r := range records {
			have[r.Key] = string(r.Value)
		}
		if !reflect.DeepEqual(have, want) {
			return fmt.Errorf("%d records are served, %d were acknowledged", len(have), len(want))
		}
		return nil
	}
	if err := same(s, acked); err != nil {
		return fmt.Errorf("out of space: %w", err)
	}
	w, err := s.Watch(c, "/k/")
	if err != nil {
		return err
	}
	for !(<-w.Events).Synced {
	}
	// Still full a while later. The file has free pages of its own, so now and
	// then something fits; what does not is still refused, and nothing is lost.
	var down error
	for i, start := 0, time.Now(); down == nil || time.Since(start) < 4*testRetry; i++ {
		op := put(fmt.Sprintf("/k/full/%d", i), strings.Repeat("y", 50000))
		if _, down = s.Commit(c, op); down == nil {
			acked[op.Key] = string(op.Value)
			if e := <-w.Events; e.Key != op.Key {
				return fmt.Errorf("the watch says %+v", e)
			}
			continue
		}
		if !errors.Is(down, ErrUnavailable) {
			return fmt.Errorf("while out of space, commit says %w", down)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := same(s, acked); err != nil {
		return fmt.Errorf("still out of space: %w", err)
	}
	// Its records still stand, but the lease has ended, and stays so.
	if err := s.KeepAlive(c, lease); !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("keeping the ended lease alive says %w", err)
	}
	if err := free(); err != nil {
		return err
	}
	for s.Writable() != nil {
		if c.Err() != nil {
			return fmt.Errorf("there is room again, but: %w", s.Writable())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := s.Commit(c, put("/k/after", "1")); err != nil {
		return err
	}
	acked["/k/after"] = "1"
	if e := <-w.Events; e.Key != "/k/after" {
		return fmt.Errorf("the watch says %+v", e)
	}
	// The lease that ended meanwhile goes as well.
	for {
		if _, err := s.Get(c, "/leased"); errors.Is(err, ErrNotFound) {
			break
		} else if c.Err() != nil {
			return errors.New("the lease never ended")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if err := same(s, acked); err != nil {
		return fmt.Errorf("with room again: %w", err)
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = OpenBolt(path, BoltOptions{retry: testRetry}); err != nil {
		return err
	}
	if err := same(s, acked); err != nil {
		return fmt.Errorf("opened again: %w", err)
	}
	return s.Close()
}

func childEIO(dir string) error {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	path := filepath.Join(dir, "recast.db")
	s, err := OpenBolt(path, BoltOptions{retry: testRetry})
	if err != nil {
		return err
	}
	failures := 0
	last := int64(0)
	for i := 0; failures < 4; i++ {
		if i > 5000 {
			return errors.New("too few syncs failed")
		}
		// Keys that nobody writes again would keep a trace of what failed.
		key := fmt.Sprintf("/k/%d", i)
		before, _ := s.Get(c, key)
		revision, err := s.Commit(c, put(key, strings.Repeat("x", i%3000)), del(fmt.Sprintf("/k/%d", i-5)), put("/last", fmt.Sprint(i)))
		if err == nil {
			if revision <= last {
				return fmt.Errorf("revision %d after %d", revision, last)
			}
			last = revision
			continue
		}
		failures++
		if !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "look at the disk") {
			return fmt.Errorf("a failed sync makes commit say %w", err)
		}
		if after, _ := s.Get(c, key); !reflect.DeepEqual(before, after) {
			return fmt.Errorf("a commit that failed is served: %+v", after)
		}
		if failures == 4 {
			break // close while it is down
		}
		for s.Writable() != nil {
			if c.Err() != nil {
				return fmt.Errorf("the disk is well again, but: %w", s.Writable())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	before, _, err := s.List(c, "")
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	if s, err = OpenBolt(path, BoltOptions{retry: testRetry}); err != nil {
		return err
	}
	after, at, err := s.List(c, "")
	if err != nil {
		return err
	}
	// The last commit failed: it may stand in the file, whole, or not at all.
	if at == last && !reflect.DeepEqual(before, after) {
		return errors.New("opened again, the records differ")
	}
	if at != last && at != last+1 {
		return fmt.Errorf("opened again, the revision is %d after %d", at, last)
	}
	return s.Close()
}

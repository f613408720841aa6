package web

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A file comes whole, and in parts, over the boot server's own connections, while
// more machines than there are turns have asked for it and read nothing.
func TestFilesAreSharedOutAndASlowMachineHoldsNobodyUp(t *testing.T) {
	s := newSite(t)
	want := make([]byte, 40<<20) // more than the kernel keeps for a connection
	_, _ = rand.NewChaCha8([32]byte{}).Read(want)
	if err := os.WriteFile(filepath.Join(s.dir, "ramdisk", "initrd.img"), want, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	boot := s.BootHTTP()
	ended := make(chan struct{})
	go func() { defer close(ended); _ = boot.Serve(Share(l)) }()
	defer func() { boot.Close(); <-ended }()
	path := RamdiskPath + "initrd.img"
	for range runtime.GOMAXPROCS(0) + 1 {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path)
		if _, err := io.ReadFull(c, make([]byte, 1<<10)); err != nil { // it is being sent
			t.Fatal(err)
		}
	}
	client := http.Client{Timeout: 30 * time.Second}
	for part, body := range map[string][]byte{"": want, "bytes=1000000-3000000": want[1000000:3000001], "bytes=-7": want[len(want)-7:]} {
		req, err := http.NewRequest("GET", "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if part != "" {
			req.Header.Set("Range", part)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode/100 != 2 || !bytes.Equal(got, body) {
			t.Errorf("%q: %s, %d bytes, %v", part, resp.Status, len(got), err)
		}
	}
}

// A file that became shorter, and a machine that went away, end an answer.
func TestASharedFileThatBecomesShorterEndsTheAnswer(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, make([]byte, 3*sharePiece), 0o644); err != nil {
		t.Fatal(err)
	}
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	l := Share(raw)
	send := func(size int64, gone bool) (int64, error) {
		t.Helper()
		c, err := net.Dial("tcp", raw.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		s, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if gone {
			s.Close()
		} else {
			go io.Copy(io.Discard, c)
		}
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return io.Copy(s, io.LimitReader(f, size))
	}
	if n, err := send(4*sharePiece, false); n != 3*sharePiece || err != nil {
		t.Errorf("%d bytes of a shorter file, %v", n, err)
	}
	if n, err := send(2*sharePiece+1, false); n != 2*sharePiece+1 || err != nil {
		t.Errorf("%d bytes of a part, %v", n, err)
	}
	if n, err := send(sharePiece, true); n != 0 || err == nil {
		t.Errorf("%d bytes to a machine that is gone, %v", n, err)
	}
}

// lowThreads gives how many threads of this process have a lower priority than its first.
func lowThreads(t *testing.T) (n int) {
	t.Helper()
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	nice := func(stat string) int {
		raw, err := os.ReadFile(stat)
		if err != nil {
			return -1 << 10 // it has ended
		}
		_, rest, _ := strings.Cut(string(raw), ") ")
		v, err := strconv.Atoi(strings.Fields(rest)[16])
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	first := nice("/proc/self/stat")
	for _, task := range tasks {
		if nice("/proc/self/task/"+task.Name()+"/stat") > first {
			n++
		}
	}
	return n
}

func TestThreadsOfLowPriorityEndWithTheLastConnection(t *testing.T) {
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	before := lowThreads(t)
	l := Share(raw)
	within := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !ok(); runtime.Gosched() {
			if time.Now().After(end) {
				t.Fatalf("%s: %d threads, %d before", what, lowThreads(t), before)
			}
		}
	}
	within("a listener", func() bool { return lowThreads(t) > before })
	client, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.Close()
	}
	f, err := os.Open("share_test.go")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if n, err := io.Copy(c, io.LimitReader(f, 100)); n != 100 || err != nil {
		t.Errorf("a connection that outlives its listener sends %d bytes, %v", n, err)
	}
	for range 2 {
		c.Close()
	}
	within("the last connection's end", func() bool { return lowThreads(t) <= before })
}

func TestFilesThatTheKernelDoesNotSendAreCopied(t *testing.T) {
	f, err := os.Open("/proc/self/pagemap") // can be read, and nothing more
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	raw, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	client, err := net.Dial("tcp", raw.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	c, err := Share(raw).Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if n, err := io.Copy(c, io.LimitReader(f, 4096)); n != 4096 || err != nil {
		t.Errorf("sent %d, %v", n, err)
	}
}

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

// Who waits for a pipe stands for who waits for a connection: what is written there is
// there at once.
func TestWhoHasSomethingToSayRunsBetweenTwoPieces(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	turn := newTurn()
	for range 100 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		heard := make(chan error, 1)
		go func() {
			_, err := r.Read(make([]byte, 1))
			heard <- err
		}()
		for range 2 {
			turn.others() // and it waits
		}
		if _, err := w.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		pieces := 0
		for ; len(heard) == 0 && pieces < 1000; pieces++ {
			turn.others()
		}
		if pieces > 3 {
			t.Fatalf("it ran after %d pieces", pieces)
		}
		if err := <-heard; err != nil {
			t.Fatal(err)
		}
		r.Close()
		w.Close()
	}
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

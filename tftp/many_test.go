package tftp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stations are sockets of so many machines: loopback has 16 million addresses.
func stations(t testing.TB, n int) []*net.UDPConn {
	t.Helper()
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil || files.Max < uint64(3*n) {
		t.Skipf("needs %d open files (ulimit -Hn)", 3*n)
	}
	socks := make([]*net.UDPConn, n)
	for i := range socks {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 1, byte(i>>8), byte(i))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		socks[i] = c
	}
	return socks
}

// inUse is the memory of heap and stacks.
func inUse() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

// TestTwoThousandSilentClientsCostLittleAndGoAway: they ask and never answer.
func TestTwoThousandSilentClientsCostLittleAndGoAway(t *testing.T) {
	for what, request := range map[string]string{
		"with options": rrq("snponly.efi", "tsize", "0", "blksize", "1468", "windowsize", "4"),
		"without":      rrq("snponly.efi"),
	} {
		t.Run(what, func(t *testing.T) {
			const machines = 2000
			s := startWith(t, "127.0.0.1:0", Limits{}, 4*time.Second, map[string][]byte{"snponly.efi": loader})
			socks := stations(t, machines)
			before, goroutines := inUse(), runtime.NumGoroutine()
			for _, c := range socks {
				if _, err := c.WriteToUDP([]byte(request), s.addr); err != nil {
					t.Fatal(err)
				}
			}
			var buf [600]byte
			for i, c := range socks {
				if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := c.ReadFromUDP(buf[:]); err != nil {
					t.Fatalf("machine %d got no answer: %v, dropped %v", i, err, s.Dropped())
				}
			}
			cost := inUse() - before
			t.Logf("%d clients cost %.1f MB", machines, float64(cost)/1e6)
			if cost > 20e6 {
				t.Errorf("%d silent clients cost %.1f MB, want less than 20", machines, float64(cost)/1e6)
			}
			s.observed(t, machines)
			for deadline := time.Now().Add(20 * time.Second); runtime.NumGoroutine() > goroutines+10; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%d goroutines are left, of %d before", runtime.NumGoroutine(), goroutines)
				}
			}
			if left := inUse() - before; left > 4e6 {
				t.Errorf("%.1f MB are left when they have gone", float64(left)/1e6)
			}
		})
	}
}

// TestAThousandClientsAtOnce: each from an address of its own, and with the
// patience of one, which asks again when nothing comes.
func TestAThousandClientsAtOnce(t *testing.T) {
	const machines = 1000
	s := startWith(t, "127.0.0.1:0", Limits{}, 0, map[string][]byte{"snponly.efi": loader})
	var all sync.WaitGroup
	for i, c := range stations(t, machines) {
		all.Go(func() {
			request := rrq("snponly.efi", "blksize", "1432", "tsize", "0") // iPXE
			if i%2 == 0 {
				request = rrq("snponly.efi", "tsize", "0", "blksize", "1468", "windowsize", "4") // edk2
			}
			content, err := fetch(c, s.addr, request)
			if err != nil || !bytes.Equal(content, loader) {
				t.Errorf("client %d fetched %d bytes that differ: %v", i, len(content), err)
			}
		})
	}
	all.Wait()
	if d := s.Dropped(); len(d) > 0 {
		t.Errorf("dropped %v", d)
	}
}

// fetch gets a file as firmware does: by what the server grants of the options
// in the request, asking again after a second without an answer.
func fetch(c *net.UDPConn, server *net.UDPAddr, request string) ([]byte, error) {
	var (
		content       []byte
		block, window = plainBlock, 1
		expected      = uint16(1)
		inWindow      int
		buf           [maxBlock + 4]byte
		to, last      = server, []byte(request)
	)
	for tries := 0; tries < 20; {
		if last != nil {
			if _, err := c.WriteToUDP(last, to); err != nil {
				return content, err
			}
		}
		if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return content, err
		}
		n, from, err := c.ReadFromUDP(buf[:])
		if errors.Is(err, os.ErrDeadlineExceeded) {
			if tries++; to != server {
				last = ackPacket(expected - 1)
			}
			continue
		}
		if err != nil {
			return content, err
		}
		last = nil
		if to != server && from.Port != to.Port || n < 4 {
			continue // of an earlier request
		}
		to = from
		switch p := buf[:n]; p[1] {
		case opOACK:
			fields := strings.Split(string(p[2:]), "\x00")
			for i := 0; i+1 < len(fields); i += 2 {
				n, err := strconv.Atoi(fields[i+1])
				switch {
				case err != nil:
					return content, err
				case fields[i] == "blksize":
					block = n
				case fields[i] == "windowsize":
					window = n
				}
			}
			last = ackPacket(0)
		case opData:
			if binary.BigEndian.Uint16(p[2:]) != expected {
				if inWindow > 0 || window == 1 {
					inWindow = 0
					last = ackPacket(expected - 1)
				}
				continue
			}
			tries = 0
			content = append(content, p[4:]...)
			expected++
			inWindow++
			if done := n-4 < block; done || inWindow == window {
				inWindow = 0
				last = ackPacket(expected - 1)
				if done {
					_, err := c.WriteToUDP(last, to)
					return content, err
				}
			}
		default:
			return content, fmt.Errorf("got %.80q", p)
		}
	}
	return content, errors.New("no answer")
}

// TestGRUBFetchesWhicheverNinthIsLost: each of nine loses another packet of nine,
// so that each of the first ones is lost to somebody.
func TestGRUBFetchesWhicheverNinthIsLost(t *testing.T) {
	content := loader[:50_000]
	s := startWith(t, "127.0.0.1:0", Limits{}, 0, map[string][]byte{"file": content})
	var all sync.WaitGroup
	for i, c := range stations(t, 9) {
		all.Go(func() {
			n := i
			got, err := asGRUB(c, s.addr, "file", func() bool { n++; return n%9 == 0 })
			if err != nil || !bytes.Equal(got, content) {
				t.Errorf("packet %d lost first: fetched %d bytes that differ from the %d of the file: %v", 9-i, len(got), len(content), err)
			}
		})
	}
	all.Wait()
}

// asGRUB gets a file as GRUB 2.06 does: it repeats its request, and nothing else;
// it answers what comes, what it has already too, and gives up after half a minute
// without a block. lost tells it of each packet whether it goes astray.
func asGRUB(c *net.UDPConn, server *net.UDPAddr, name string, lost func() bool) ([]byte, error) {
	send := func(p []byte, to *net.UDPAddr) error {
		if lost() {
			return nil
		}
		_, err := c.WriteToUDP(p, to)
		return err
	}
	var (
		content []byte
		block   uint16
		buf     [maxBlock + 4]byte
		to      *net.UDPAddr
	)
	for try, heard := 0, time.Now(); ; {
		deadline := heard.Add(33 * time.Second)
		if to == nil {
			if try++; try > 40 {
				return nil, errors.New("time out opening")
			}
			if err := send([]byte(rrq(name, "blksize", "1024", "tsize", "0")), server); err != nil {
				return nil, err
			}
			deadline = time.Now().Add(400*time.Millisecond + time.Duration(try)*20*time.Millisecond)
		}
		if err := c.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
		n, from, err := c.ReadFromUDP(buf[:])
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && to == nil:
			continue
		case errors.Is(err, os.ErrDeadlineExceeded):
			return content, errors.New("timeout reading")
		case err != nil:
			return content, err
		}
		if lost() || n < 4 || to != nil && from.Port != to.Port {
			continue
		}
		if buf[1] == opError {
			return content, fmt.Errorf("got %.80q", buf[:n])
		}
		to = from
		answer := binary.BigEndian.Uint16(buf[2:])
		switch {
		case buf[1] == opOACK:
			block, content, answer = 0, nil, 0
		case answer > block+1:
			continue
		case answer == block+1:
			block++
			content, heard = append(content, buf[4:n]...), time.Now()
		}
		if err := send(ackPacket(answer), to); err != nil {
			return content, err
		}
		if buf[1] == opData && answer == block && n < 1024+4 {
			return content, nil
		}
	}
}

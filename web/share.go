package web

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Share makes the connections of a listener send files piece by piece, as many at
// once as there are CPUs. One call to send a file goes on for as long as its client
// keeps up, on a thread of its own; with many of these on a fast network a machine
// that asks for its boot script would get what is left by the kernel's scheduler.
func Share(l net.Listener) net.Listener {
	return &sharing{Listener: l, turns: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// sharePiece is sent in 0.1 to 0.2 ms.
const sharePiece = 256 << 10

// Where somebody always has something to do, Go's scheduler looks at the network
// every 10 ms only; while all wait for a turn whose holder pauses, it looks at once.
// With nothing else to do a pause takes 1 ms: it is made while machines come, and
// costs a third of the rate at most.
const (
	comeLately = 100 * time.Millisecond // after a connection
	pauseEvery = 2 * time.Millisecond
)

type sharing struct {
	net.Listener
	turns chan struct{}
	// In Unix nanoseconds: the last connection, and the last pause.
	came, paused atomic.Int64
}

// due tells who asks that it is time for a pause, and no other.
func (l *sharing) due(now int64) bool {
	last := l.paused.Load()
	return now-l.came.Load() < int64(comeLately) && now-last >= int64(pauseEvery) && l.paused.CompareAndSwap(last, now)
}

func (l *sharing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	l.came.Store(time.Now().UnixNano())
	if tcp, ok := c.(*net.TCPConn); ok {
		return &sharingConn{tcp, l}, err
	}
	return c, err
}

type sharingConn struct {
	*net.TCPConn
	of *sharing
}

// ReadFrom is where net/http sends a file's content.
func (c *sharingConn) ReadFrom(r io.Reader) (sent int64, err error) {
	part, ok := r.(*io.LimitedReader)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	file, ok := part.R.(*os.File)
	if !ok {
		return c.TCPConn.ReadFrom(r)
	}
	from, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	to, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	at, err := file.Seek(0, io.SeekCurrent)
	if err != nil {
		return c.TCPConn.ReadFrom(r)
	}
	for part.N > 0 {
		size := min(part.N, sharePiece)
		if err := from.Control(func(file uintptr) { present(int(file), at+sent, size) }); err != nil {
			return sent, err
		}
		n, err := c.piece(to, from, int(size))
		if sent == 0 && errors.Is(err, unix.EINVAL) { // a filesystem that has no such thing
			return c.TCPConn.ReadFrom(r)
		}
		if n <= 0 || err != nil { // none: the file became shorter
			return sent, err
		}
		sent += int64(n)
		part.N -= int64(n)
	}
	return sent, nil
}

// present waits for bytes of a file that are not in memory, so that nobody's turn is
// held while a disk is slow: beside four files from one of 10 MB/s, one of a MiB that
// is in memory took 460 ms, and 1 since.
func present(file int, at, size int64) {
	last := [1]byte{}
	if _, err := unix.Preadv2(file, [][]byte{last[:]}, at+size-1, unix.RWF_NOWAIT); err == nil {
		return
	}
	_ = unix.Fadvise(file, at, size, unix.FADV_WILLNEED)
	_, _ = unix.Pread(file, last[:], at+size-1) // what fails here fails as it is sent
}

// piece sends the file's next bytes. Nobody's turn is held while a client is slow.
func (c *sharingConn) piece(to, from syscall.RawConn, size int) (n int, err error) {
	var failed, closed error
	err = to.Write(func(socket uintptr) bool {
		c.of.turns <- struct{}{}
		defer func() {
			if c.of.due(time.Now().UnixNano()) {
				time.Sleep(time.Microsecond)
			}
			<-c.of.turns
		}()
		closed = from.Control(func(file uintptr) {
			n, failed = unix.Sendfile(int(socket), int(file), nil, size)
		})
		return closed != nil || !errors.Is(failed, unix.EAGAIN) // EAGAIN: when there is room for more
	})
	switch {
	case err != nil || closed != nil:
		return 0, cmp.Or(err, closed)
	case errors.Is(failed, unix.EINTR):
		return c.piece(to, from, size)
	case failed != nil:
		return 0, os.NewSyscallError("sendfile", failed)
	}
	return n, nil
}

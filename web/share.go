package web

import (
	"cmp"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Share makes the connections of a listener send files in pieces, as many at a time as
// Go runs threads. Between two of them whoever asks for something short has its turn:
// with many machines that fetch files on a fast network, boot scripts wait for a piece
// at the most. (Go's scheduler looks at the network every 10 ms only, where somebody
// always has something to do.)
func Share(l net.Listener) net.Listener {
	s := &sharing{Listener: l, turns: make(chan *turn, runtime.GOMAXPROCS(0))}
	for range cap(s.turns) {
		s.turns <- newTurn()
	}
	return s
}

const (
	// sharePiece is sent in 0.05 to 0.2 ms: a turn costs 0.003 ms.
	sharePiece = 256 << 10
	// shareAhead is read from a disk at a time: one that has to seek takes as long for less.
	shareAhead = 1 << 20
)

type sharing struct {
	net.Listener
	turns chan *turn
}

func (l *sharing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &sharingConn{TCPConn: tcp, of: l}, err
	}
	return c, err
}

type sharingConn struct {
	*net.TCPConn
	of *sharing
}

// turn is what each of those holds who send a piece at the same time. Its event stands
// in one row with what the network has for others.
type turn struct {
	file  *os.File
	event syscall.RawConn
}

func newTurn() *turn {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil { // too many files are open: it is sent all the same
		return &turn{}
	}
	t := &turn{file: os.NewFile(uintptr(fd), "eventfd")}
	t.event, _ = t.file.SyscallConn()
	return t
}

// others have their turn: they run before it returns, or before it does the next time.
// The event is never taken back, since each write wakes whoever waits.
func (t *turn) others() {
	if t.event == nil {
		runtime.Gosched()
		return
	}
	one := [8]byte{1}
	asked := false
	_ = t.event.Read(func(fd uintptr) bool {
		if asked {
			return true
		}
		asked = true
		_, err := unix.Write(int(fd), one[:])
		return err != nil
	})
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
	for there := int64(0); part.N > 0; {
		size := min(part.N, sharePiece)
		if sent+size > there {
			ahead := min(part.N, shareAhead)
			if err := from.Control(func(file uintptr) { present(int(file), at+sent, ahead) }); err != nil {
				return sent, err
			}
			there = sent + ahead
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

// present waits for bytes of a file that are not in memory, so that no turn is held
// while a disk is slow: beside four files from one of 10 MB/s, one of a MiB that
// is in memory took 460 ms, and 1 since.
func present(file int, at, size int64) {
	last := [1]byte{}
	if _, err := unix.Preadv2(file, [][]byte{last[:]}, at+size-1, unix.RWF_NOWAIT); err == nil {
		return
	}
	_ = unix.Fadvise(file, at, size, unix.FADV_WILLNEED)
	_, _ = unix.Pread(file, last[:], at+size-1) // what fails here fails as it is sent
}

// piece sends the file's next bytes. No turn is held while a client is slow.
func (c *sharingConn) piece(to, from syscall.RawConn, size int) (n int, err error) {
	var failed, closed error
	err = to.Write(func(socket uintptr) bool {
		t := <-c.of.turns
		t.others()
		closed = from.Control(func(file uintptr) {
			n, failed = unix.Sendfile(int(socket), int(file), nil, size)
		})
		c.of.turns <- t
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

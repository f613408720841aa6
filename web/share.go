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

// Share makes the connections of a listener send files piece by piece, as many at
// once as there are CPUs. One call to send a file goes on for as long as its client
// keeps up, on a thread of its own; with many of these on a fast network a machine
// that asks for its boot script would get what is left by the kernel's scheduler.
func Share(l net.Listener) net.Listener {
	return &sharing{l, make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// sharePiece is sent in 0.1 to 0.2 ms.
const sharePiece = 256 << 10

type sharing struct {
	net.Listener
	turns chan struct{}
}

func (l *sharing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		return &sharingConn{tcp, l.turns}, err
	}
	return c, err
}

type sharingConn struct {
	*net.TCPConn
	turns chan struct{}
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
	for part.N > 0 {
		n, err := c.piece(to, from, int(min(part.N, sharePiece)))
		if n <= 0 || err != nil { // none: the file became shorter
			return sent, err
		}
		sent += int64(n)
		part.N -= int64(n)
	}
	return sent, nil
}

// piece sends the file's next bytes. Nobody's turn is held while a client is slow.
func (c *sharingConn) piece(to, from syscall.RawConn, size int) (n int, err error) {
	var failed, closed error
	err = to.Write(func(socket uintptr) bool {
		c.turns <- struct{}{}
		defer func() { <-c.turns }()
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

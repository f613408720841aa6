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

	"golang.org/x/sys/unix"
)

// Share makes the connections of a listener send files by threads of low priority, one
// less than Go runs at a time: with many machines that fetch files on a fast network,
// who asks for a boot script is answered first, by the kernel's scheduler. (Go's own
// looks at the network every 10 ms only, where somebody always has something to do.)
func Share(l net.Listener) net.Listener {
	s := &sharing{Listener: l, pieces: make(chan func()), left: make(chan struct{})}
	s.users.Store(1)
	for range max(1, runtime.GOMAXPROCS(0)-1) {
		go s.send()
	}
	return s
}

const (
	// sharePiece is sent in 0.3 to 0.8 ms: handing it to a thread costs 0.02 ms.
	sharePiece = 1 << 20
	// shareNice leaves a tenth of a busy CPU to files: sched(7) weighs 110 to 1024.
	shareNice = 10
)

type sharing struct {
	net.Listener
	users  atomic.Int64 // the listener and its connections
	left   chan struct{}
	pieces chan func()
}

// send ends with its thread, which nobody else could use, when the last user has left.
func (l *sharing) send() {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() { // its priority is what ps says of the process
		defer runtime.UnlockOSThread()
		go l.send() // which cannot get this thread
		<-l.left
		return
	}
	// On Linux this is of the thread; getpriority(2) says 20 less what setpriority takes.
	if has, err := unix.Getpriority(unix.PRIO_PROCESS, 0); err == nil {
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 20-has+shareNice)
	}
	for {
		select {
		case piece := <-l.pieces:
			piece()
		case <-l.left:
			return
		}
	}
}

func (l *sharing) leave() {
	if l.users.Add(-1) == 0 {
		close(l.left)
	}
}

func (l *sharing) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok {
		l.users.Add(1)
		return &sharingConn{TCPConn: tcp, of: l}, err
	}
	return c, err
}

func (l *sharing) Close() error {
	err := l.Listener.Close()
	if !errors.Is(err, net.ErrClosed) { // by an earlier call
		l.leave()
	}
	return err
}

type sharingConn struct {
	*net.TCPConn
	of *sharing
}

// Close returns when no piece is being sent any more.
func (c *sharingConn) Close() error {
	err := c.TCPConn.Close()
	if !errors.Is(err, net.ErrClosed) {
		c.of.leave()
	}
	return err
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

// present waits for bytes of a file that are not in memory, so that no thread is held
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

// piece sends the file's next bytes. No thread is held while a client is slow.
func (c *sharingConn) piece(to, from syscall.RawConn, size int) (n int, err error) {
	var failed, closed error
	ended := make(chan struct{}, 1)
	err = to.Write(func(socket uintptr) bool {
		c.of.pieces <- func() {
			closed = from.Control(func(file uintptr) {
				n, failed = unix.Sendfile(int(socket), int(file), nil, size)
			})
			ended <- struct{}{}
		}
		<-ended
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

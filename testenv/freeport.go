package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// kept are the locks of the ports that this process was given.
var kept struct {
	sync.Mutex
	locks []*os.File
}

// FreePort is a TCP port of loopback that nobody uses and that no other test is given
// while this process lives: several test programs run at a time, and each lets go of a
// port between finding it free and having its server listen there. It is none of those
// that the kernel gives to clients and to port 0, from 32768 up, so that a server which
// is down for a moment finds its own again.
func FreePort() (int, error) {
	dir := filepath.Join(os.TempDir(), "recast-test-ports")
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	_ = os.Chmod(dir, 0o1777) // tests of root and of others share it
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && free(port) {
			kept.Lock()
			kept.locks = append(kept.locks, lock)
			kept.Unlock()
			return port, nil
		}
		lock.Close()
	}
	return 0, fmt.Errorf("find a free port: none is")
}

// free: on every address, since servers stand behind proxies at another one.
func free(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
	if err != nil {
		return false
	}
	return l.Close() == nil
}

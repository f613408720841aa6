package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// netnsDir is where iproute2 keeps named namespaces.
const netnsDir = "/run/netns"

// NetBridge is the bridge that every Net has: the machines of a rack hang on it,
// but those that are put on another segment.
const NetBridge = "br0"

// Net is a network namespace with a bridge in it and nothing else: no link to
// the host's network. Interfaces and addresses of a Net exist only inside, so
// that several Nets may use the same ones.
//
// Duties of the caller: Close it. What Start started dies at the latest with
// Close, and when this process dies, however it dies.
type Net struct {
	Name string
	Addr netip.Prefix // the bridge's first address

	starts  chan func()
	adverts []func() // end them
	stop    chan struct{}
	ended   chan struct{}
	once    sync.Once
}

// NewNet makes the namespace name with a bridge that has the address addr. A
// namespace of that name must not exist; RemoveNet clears one that a killed
// process left.
func NewNet(name string, addr netip.Prefix) (*Net, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("make network namespace: needs root")
	}
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make network namespace %q: %w: %s", name, err, bytes.TrimSpace(out))
	}
	n := &Net{Name: name, Addr: addr, starts: make(chan func()), stop: make(chan struct{}), ended: make(chan struct{})}
	if err := n.ip(
		"link set lo up",
		"link add "+NetBridge+" type bridge forward_delay 0",
		"link set "+NetBridge+" up",
		"address add "+addr.String()+" dev "+NetBridge,
	); err != nil {
		return nil, errors.Join(err, netnsDelete(name))
	}
	ready := make(chan error)
	netnsThread(func() { n.serveStarts(ready) })
	if err := <-ready; err != nil {
		return nil, errors.Join(err, netnsDelete(name))
	}
	// Nobody speaks IPv6 here but boot ROMs, and a bridge that solicits routers only
	// fills captures.
	err := n.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1\n"), 0o644)
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, errors.Join(fmt.Errorf("switch IPv6 off in %q: %w", name, err), n.Close())
	}
	if err := n.advertise(NetBridge); err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// serveStarts is the one thread that forks: the kernel ties a child's death
// signal to the thread that forked it, and Go's threads come and go.
func (n *Net) serveStarts(ready chan<- error) {
	defer close(n.ended)
	err := netnsEnter(n.Name)
	ready <- err
	if err != nil {
		return
	}
	for {
		select {
		case start := <-n.starts:
			start()
		case <-n.stop:
			return
		}
	}
}

// netnsThread runs f in a goroutine with a thread of its own, which ends with it
// and so leaves the namespace that f entered.
func netnsThread(f func()) {
	go func() {
		// Never unlocked: that is what makes the runtime end the thread instead of
		// giving others one that stands in a foreign namespace.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		// The main thread is the one that the runtime cannot end: it would keep the
		// namespace, and be the process's own as others see it. Take another one
		// while this one is held.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			f()
		}()
		<-locked
		runtime.UnlockOSThread()
	}()
}

// netnsEnter moves the calling thread, which must be locked.
func netnsEnter(name string) error {
	f, err := os.Open(filepath.Join(netnsDir, name))
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer f.Close()
	if err := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %q: %w", name, err)
	}
	return nil
}

// Do runs f on a thread inside the namespace. Sockets that f opens stay there
// for life; goroutines that f starts do not.
func (n *Net) Do(f func() error) error { return NetDo(n.Name, f) }

// NetDo is Do for a namespace that another process made.
func NetDo(name string, f func() error) error {
	result := make(chan error, 1)
	netnsThread(func() {
		if err := netnsEnter(name); err != nil {
			result <- err
			return
		}
		result <- f()
	})
	return <-result
}

// Start starts cmd inside the namespace; it is killed when this process dies or
// the Net is closed. The caller waits for cmd.
func (n *Net) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	result := make(chan error, 1)
	select {
	case n.starts <- func() { result <- cmd.Start() }:
		return <-result
	case <-n.ended:
		return fmt.Errorf("start %q: network namespace %q is closed", cmd.Path, n.Name)
	}
}

// AddBridge makes a segment of its own, on which we have no address.
func (n *Net) AddBridge(name string) error {
	if err := n.ip("link add "+name+" type bridge forward_delay 0", "link set "+name+" up"); err != nil {
		return err
	}
	return n.advertise(name)
}

// AddTap makes a tap interface on a bridge, for one QEMU NIC.
func (n *Net) AddTap(name, bridge string) error {
	return n.ip(
		"tuntap add dev "+name+" mode tap",
		"link set "+name+" master "+bridge+" up",
	)
}

// SetLink pulls (up false) or plugs the cable of a tap.
func (n *Net) SetLink(name string, up bool) error {
	word := "down"
	if up {
		word = "up"
	}
	return n.ip("link set " + name + " " + word)
}

// AddAddr adds an address of its own, for a BMC: reachable from inside only,
// and on no wire that a machine hangs on.
func (n *Net) AddAddr(addr netip.Addr) error {
	return n.ip("address add " + addr.String() + "/32 dev lo")
}

// ip runs commands of ip(8) inside the namespace.
func (n *Net) ip(commands ...string) error {
	cmd := exec.Command("ip", "-n", n.Name, "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("set up network namespace %q: %w: %s", n.Name, err, bytes.TrimSpace(out))
	}
	return nil
}

// Close kills every process inside and removes the namespace with its
// interfaces. A second Close does nothing.
func (n *Net) Close() error {
	var err error
	n.once.Do(func() {
		for _, end := range n.adverts {
			end()
		}
		close(n.stop)
		<-n.ended
		err = RemoveNet(n.Name)
	})
	return err
}

// RemoveNet kills every process inside the namespace and removes it: what Close
// does, for a namespace whose maker was killed. No such namespace: nil.
func RemoveNet(name string) error {
	if _, err := os.Stat(filepath.Join(netnsDir, name)); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// Killed processes take a moment to leave; one that was just being forked
	// shows up only in the second look.
	deadline := time.Now().Add(5 * time.Second)
	for {
		pids, err := netnsPIDs(name)
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return netnsDelete(name)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("remove network namespace %q: processes %v do not die", name, pids)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may be gone already
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Nets lists the namespaces whose name starts with prefix.
func Nets(prefix string) ([]string, error) {
	entries, err := os.ReadDir(netnsDir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// netnsPIDs are the processes in the namespace, without this one, whose threads
// only visit, and without those that are dead and wait for their parent.
func netnsPIDs(name string) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ip", "netns", "pids", name).Output()
	if err != nil {
		return nil, fmt.Errorf("list processes in network namespace %q: %w", name, err)
	}
	var pids []int
	for _, word := range strings.Fields(string(out)) {
		pid, err := strconv.Atoi(word)
		if err != nil || pid == os.Getpid() || netnsDead(pid) {
			continue
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

func netnsDead(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ") // after the command's name in brackets
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

func netnsDelete(name string) error {
	if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
		return fmt.Errorf("remove network namespace %q: %w: %s", name, err, bytes.TrimSpace(out))
	}
	return nil
}

package testenv

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Neighbour is another host on the wires of a Net: a network namespace of its own.
//
// Duties of the caller: Close it before the Net. What Start started dies at the
// latest with Close, and when this process dies.
type Neighbour struct {
	Name string
	net  *Net
}

// NeighbourLeg is one interface of a neighbour; the first is eth0 there.
type NeighbourLeg struct {
	Bridge string
	Addr   netip.Prefix
}

// AddNeighbour makes a host that has a leg on each of the bridges named, with
// packets routed between them. Its name within the Net has at most eight letters.
func (n *Net) AddNeighbour(name string, legs ...NeighbourLeg) (h *Neighbour, err error) {
	h = &Neighbour{Name: n.Name + "-" + name, net: n}
	if out, err := exec.Command("ip", "netns", "add", h.Name).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make neighbour %q: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("make neighbour %q: %w", name, err), h.Close())
			h = nil
		}
	}()
	inside := &Net{Name: h.Name}
	if err := inside.ip("link set lo up"); err != nil {
		return h, err
	}
	for i, leg := range legs {
		end, eth := fmt.Sprintf("%s-%d", name, i), fmt.Sprintf("eth%d", i)
		if err := n.ip("link add "+end+" type veth peer name "+eth+" netns "+h.Name,
			"link set "+end+" master "+leg.Bridge+" up"); err != nil {
			return h, err
		}
		if err := inside.ip("address add "+leg.Addr.String()+" dev "+eth, "link set "+eth+" up"); err != nil {
			return h, err
		}
	}
	return h, NetDo(h.Name, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1\n"), 0o644)
	})
}

// Start starts a program there. The caller waits for it.
func (h *Neighbour) Start(cmd *exec.Cmd) error {
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return err
	}
	cmd.Args = append([]string{"nsenter", "--net=" + filepath.Join(netnsDir, h.Name), cmd.Path}, cmd.Args[1:]...)
	cmd.Path = nsenter
	return h.net.Start(cmd)
}

// Close kills its processes and removes it.
func (h *Neighbour) Close() error { return RemoveNet(h.Name) }

package dhcp

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"recast/inventory"
)

const (
	// probeQuiet is how long a Network stays silent after our own DISCOVER.
	probeQuiet = 2 * time.Second
	// probeListen is how long an OFFER is still listened for: dnsmasq pings an
	// address for three seconds before it offers it.
	probeListen = 6 * time.Second
	// probeSilent and probeServing are the times between two probes.
	probeSilent  = time.Minute
	probeServing = 10 * time.Minute
	// probeRest is the least time between two probes, whatever clients say.
	probeRest = time.Minute
)

// foreign is another server's OFFER.
type foreign struct {
	server netip.Addr
	mac    net.HardwareAddr
	offer  netip.Addr
}

// State of a Network on its own link.
const (
	dutyProbing int32 = iota // not yet sure to be alone
	dutyServing
	dutySilent // another server answers here
)

// duty is one Network on one interface, from its first probe on.
type duty struct {
	site  site
	state atomic.Int32
	// doubt holds a word where a client took the offer of a server that is not ours.
	doubt chan struct{}
}

func newDuty(t site) *duty { return &duty{site: t, doubt: make(chan struct{}, 1)} }

// suspect asks for a probe soon. It never blocks.
func (d *duty) suspect() {
	select {
	case d.doubt <- struct{}{}:
	default:
	}
}

// guard probes for other servers until the context ends. Before the first
// clean probe a foreign OFFER silences the Network. After it, one is only
// reported: whoever answers later must not be able to switch us off.
func (s *Server) guard(ctx context.Context, d *duty) {
	n, key := d.site.network, "foreign/"+d.site.network.Name
	if n.DHCP == inventory.DHCPProxy {
		d.state.Store(dutyServing) // another server is what we expect
		<-ctx.Done()
		return
	}
	settled := n.Force
	if n.Force {
		d.state.Store(dutyServing)
	}
	defer s.findings.clear(key)
	defer s.findings.clear(routerKey(n))
	for ctx.Err() == nil {
		var seen, managed atomic.Bool
		found := func(f foreign) {
			seen.Store(true)
			s.foreignSeen(d, key, f, settled)
			if !settled {
				d.state.Store(dutySilent)
			}
		}
		listen, cancel := context.WithTimeout(ctx, probeListen)
		quiet := time.AfterFunc(probeQuiet, func() {
			if !seen.Load() && d.state.CompareAndSwap(dutyProbing, dutyServing) {
				s.log().Info("serve network", "network", n.Name, "interface", d.site.iface.Name, "server", d.site.server)
			}
		})
		var err error
		if n.Subnet.Addr().Is6() {
			err = s.probe6(listen, *d.site.iface, s.duid, found, func() { managed.Store(true) })
		} else {
			err = s.probe(listen, *d.site.iface, s.probeClass(), found)
			managed.Store(true) // nothing that IPv4 needs
		}
		quiet.Stop()
		cancel()
		if ctx.Err() != nil {
			return
		}
		wait := probeServing
		switch {
		case err != nil && !settled:
			d.state.Store(dutyProbing)
			text := fmt.Sprintf("network %q: not served, since looking for other DHCP servers does not work: %v; mend that, or set force: true", n.Name, err)
			if s.findings.set(key, text, time.Time{}) {
				s.log().Warn(text)
			}
			wait = 5 * time.Second
		case err != nil:
			s.log().Debug("probe for other servers", "network", n.Name, "err", err)
		case !seen.Load():
			s.findings.clear(key)
			settled = true
			if d.state.Swap(dutyServing) != dutyServing {
				s.log().Info("serve network", "network", n.Name, "interface", d.site.iface.Name, "server", d.site.server)
			}
		case !settled:
			wait = probeSilent
		}
		if err == nil && !s.noteRouters(n, d.site.iface.Name, managed.Load()) {
			wait = probeSilent
		}
		// A client that takes another server's offer is heard before the next probe is
		// due, but may not make us probe all the time.
		rest := min(wait, probeRest)
		select {
		case <-ctx.Done():
			return
		case <-s.after(rest):
		}
		if wait > rest {
			select {
			case <-ctx.Done():
			case <-d.doubt:
			case <-s.after(wait - rest):
			}
		}
	}
}

func (s *Server) foreignSeen(d *duty, key string, f foreign, settled bool) {
	n, instead := d.site.network, inventory.DHCPProxy
	if n.Subnet.Addr().Is6() {
		instead = inventory.DHCPOff
	}
	text := fmt.Sprintf("network %q: another DHCP server, %s (%s), answers on %s: nothing is answered there; stop it, or set dhcp: %s or force: true",
		n.Name, f.server, f.mac, d.site.iface.Name, instead)
	if settled {
		text = fmt.Sprintf("network %q: another DHCP server, %s (%s), answers on %s beside us; stop it", n.Name, f.server, f.mac, d.site.iface.Name)
	}
	if s.findings.set(key, text, time.Time{}) {
		s.log().Warn(text)
	}
	s.observe(inventory.Observation{Kind: inventory.SawForeign, Network: n.Name, MAC: inventory.MACOf(f.mac), Remote: f.server,
		Detail: fmt.Sprintf("offers %s on %s", f.offer, d.site.iface.Name)})
}

// probe sends one DISCOVER out of an interface, twice, and calls found for each
// OFFER to it until the context ends. It uses a packet socket, so that neither
// a DHCP client on port 68 nor a firewall of this machine is in its way.
func probe(ctx context.Context, f Interface, class string, found func(foreign)) error {
	if len(f.MAC) != 6 {
		<-ctx.Done() // loopback, tunnel: nobody else is there
		return nil
	}
	pc, err := listenFrames(f, unix.ETH_P_IP, clientPortFilter)
	if err != nil {
		return err
	}
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { _ = pc.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	var xid dhcpv4.TransactionID
	if _, err := rand.Read(xid[:]); err != nil {
		return fmt.Errorf("make transaction id: %w", err)
	}
	msg := frame(netip.AddrPortFrom(netip.AddrFrom4([4]byte{}), clientPort),
		netip.AddrPortFrom(broadcast.Addr(), serverPort), discover(xid, f.MAC, class).ToBytes())
	everybody := &packet.Addr{HardwareAddr: net.HardwareAddr{255, 255, 255, 255, 255, 255}}
	if _, err := pc.WriteTo(msg, everybody); err != nil {
		return fmt.Errorf("send DISCOVER on %s: %w", f.Name, err)
	}
	again := time.AfterFunc(probeQuiet/2, func() { _, _ = pc.WriteTo(msg, everybody) })
	defer again.Stop()

	buf := make([]byte, 2048)
	for {
		n, from, err := pc.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, os.ErrDeadlineExceeded) {
				return nil
			}
			return fmt.Errorf("wait for offers on %s: %w", f.Name, err)
		}
		if o, ok := foreignOffer(buf[:n], xid); ok {
			if a, ok := from.(*packet.Addr); ok {
				o.mac = a.HardwareAddr
			}
			found(o)
		}
	}
}

// clientPortFilter passes IPv4 UDP to port 68 on a datagram packet socket,
// where the packet begins with the IP header.
var clientPortFilter = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 17, SkipTrue: 4},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 2, Size: 2},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: clientPort, SkipTrue: 1},
	bpf.RetConstant{Val: 0xffff},
	bpf.RetConstant{Val: 0},
}

// discover is our own question: a broadcast reply is asked for, since nobody
// configures the address that would be offered.
func discover(xid dhcpv4.TransactionID, mac net.HardwareAddr, class string) *dhcpv4.DHCPv4 {
	p := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: 1, ClientHWAddr: mac, TransactionID: xid,
		Options: dhcpv4.Options{
			dhcpv4.OptionDHCPMessageType.Code():      {byte(dhcpv4.MessageTypeDiscover)},
			dhcpv4.OptionParameterRequestList.Code(): {1, 3, 6},
			dhcpv4.OptionClassIdentifier.Code():      []byte(class),
		}}
	p.SetBroadcast()
	return p
}

// foreignOffer reads an OFFER of an address to our own question. A ProxyDHCP
// offer (no address) is no rival for addresses.
func foreignOffer(b []byte, xid dhcpv4.TransactionID) (foreign, bool) {
	src, port, payload, ok := unframe(b)
	if !ok || port != clientPort {
		return foreign{}, false
	}
	p, err := dhcpv4.FromBytes(payload)
	if err != nil || p.OpCode != dhcpv4.OpcodeBootReply || p.TransactionID != xid {
		return foreign{}, false
	}
	if t := p.Options.Get(dhcpv4.OptionDHCPMessageType); len(t) != 1 || dhcpv4.MessageType(t[0]) != dhcpv4.MessageTypeOffer {
		return foreign{}, false
	}
	f := foreign{server: identifier(p), offer: addr4(p.YourIPAddr)}
	if !f.server.IsValid() {
		f.server = src.Addr()
	}
	return f, f.offer.IsValid()
}

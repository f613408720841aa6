package main

import (
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// leaveContext writes what the CLI of root on this host needs.
func (s *server) leaveContext(listeners []net.Listener) error {
	if len(listeners) == 0 {
		return nil
	}
	addr := listeners[0].Addr().(*net.TCPAddr).AddrPort()
	host := addr.Addr().Unmap()
	if host.IsUnspecified() {
		host = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	token, err := filepath.Abs(filepath.Join(s.Data, "operator.token"))
	if err != nil {
		return err
	}
	ca := s.engine.Authority()
	if err := os.WriteFile(filepath.Join(s.Data, "ca.pem"), ca.PEM(), 0o644); err != nil {
		return fmt.Errorf("write the CA certificate: %w", err)
	}
	return saveContext(filepath.Join(s.Data, localContext), clientContext{Name: "local",
		URL: "https://" + netip.AddrPortFrom(host, addr.Port()).String(), CAPEM: string(ca.PEM()), CADigest: ca.Digest(), TokenFile: token})
}

// certificates issues one for the addresses of this host, again when a client
// comes in on a new one.
func (s *server) certificates() func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	var mu sync.Mutex
	var cert *tls.Certificate
	var issued time.Time
	have := map[netip.Addr]bool{}
	return func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		mu.Lock()
		defer mu.Unlock()
		local, _ := netip.ParseAddrPort(h.Conn.LocalAddr().String())
		addr := local.Addr().Unmap()
		// It lasts two years; a server may run for longer.
		if cert != nil && have[addr] && time.Since(issued) < 90*24*time.Hour {
			return cert, nil
		}
		have[addr] = true
		for _, a := range localAddrs() {
			have[a] = true
		}
		addrs := make([]netip.Addr, 0, len(have))
		for a := range have {
			addrs = append(addrs, a)
		}
		names := []string{"localhost"}
		if host, err := os.Hostname(); err == nil {
			names = append(names, host)
		}
		c, err := s.engine.Authority().Issue(names, addrs, time.Now())
		if err != nil {
			return nil, err
		}
		cert, issued = &c, time.Now()
		return cert, nil
	}
}

func localAddrs() []netip.Addr {
	var out []netip.Addr
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			out = append(out, p.Addr().Unmap())
		}
	}
	return out
}

// address is the one of ours that a Network's machines reach: that of the interface
// in its subnet, or where they are behind a router, the one that we send to them
// from.
func (s *server) address(network string) (netip.Addr, bool) {
	if s.engine == nil {
		return netip.Addr{}, false
	}
	n := s.engine.Set().Network(network)
	if n == nil {
		return netip.Addr{}, false
	}
	return s.ours.towards(n.Subnet, time.Now())
}

// ourAddresses remembers for a second which of our addresses is for which subnet:
// every DHCP packet and boot script asks, and the kernel's answer costs more than
// all else about them.
type ourAddresses struct {
	mu    sync.Mutex
	until time.Time
	known map[netip.Prefix]netip.Addr // zero: none
}

func (o *ourAddresses) towards(subnet netip.Prefix, now time.Time) (netip.Addr, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if now.After(o.until) {
		o.until, o.known = now.Add(time.Second), map[netip.Prefix]netip.Addr{}
	}
	a, ok := o.known[subnet]
	if !ok {
		a = addressTowards(subnet)
		o.known[subnet] = a
	}
	return a, a.IsValid()
}

func addressTowards(subnet netip.Prefix) netip.Addr {
	for _, a := range localAddrs() {
		if subnet.Contains(a) {
			return a
		}
	}
	a, _ := routedFrom(subnet)
	return a
}

// routedFrom is the address that this host's routes choose towards a subnet; false
// where none leads there. It sends nothing.
func routedFrom(subnet netip.Prefix) (netip.Addr, bool) {
	to := netip.AddrPortFrom(subnet.Masked().Addr().Next(), 9)
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return netip.Addr{}, false
	}
	defer c.Close()
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return from, from.IsValid() && !from.IsUnspecified()
}

// towards is the address of ours that a host reaches: the one that we send to it
// from. It sends nothing but a question to a name server, where the host is a name.
func towards(host string) (netip.Addr, bool) {
	c, err := net.DialTimeout("udp", net.JoinHostPort(host, "9"), 5*time.Second)
	if err != nil {
		return netip.Addr{}, false
	}
	defer c.Close()
	from := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap().WithZone("")
	return from, from.IsValid() && !from.IsUnspecified()
}

// readToken reads the token of operator or metrics, or makes it at first start. record is told
// before there is a new one.
func readToken(whose, path string, record func() error) (string, error) {
	raw, err := os.ReadFile(path)
	if err == nil {
		if token := strings.TrimSpace(string(raw)); len(token) >= 32 {
			return token, nil
		}
		return "", fmt.Errorf("read the token of %s: %s holds no token; remove it to have a new one made", whose, path)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the token of %s: %w", whose, err)
	}
	var b [32]byte
	if _, err := rand.Read(b[:]); err != nil {
		return "", err
	}
	token := hex.EncodeToString(b[:])
	if err := record(); err != nil {
		return "", err
	}
	if err := writePrivate(path, []byte(token+"\n")); err != nil {
		return "", fmt.Errorf("write the token of %s: %w", whose, err)
	}
	return token, nil
}

func (s *server) listen(passed sockets, name, addr string) ([]net.Listener, error) {
	ls, err := passed.listeners(name)
	if err != nil || len(ls) > 0 {
		return ls, err
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for %s: %w; change %q in the configuration", name, err, name)
	}
	return []net.Listener{l}, nil
}

package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/net/bpf"

	"recast/inventory"
)

var probeXID = dhcpv4.TransactionID{9, 9, 9, 9}

// foreignFrame is an OFFER as a packet socket hands it over.
func foreignFrame(change func(*dhcpv4.DHCPv4)) []byte {
	p := message(dhcpv4.MessageTypeOffer, macStranger, serverID("10.20.0.9"))
	p.OpCode, p.TransactionID, p.YourIPAddr = dhcpv4.OpcodeBootReply, probeXID, net.IPv4(10, 20, 0, 50)
	change(p)
	return frame(netip.MustParseAddrPort("10.20.0.9:67"), broadcast, p.ToBytes())
}

func TestForeignOfferIsTheAnswerToOurQuestion(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*dhcpv4.DHCPv4)
		want   string
	}{
		{"an offer", func(*dhcpv4.DHCPv4) {}, "10.20.0.9"},
		{"without an identifier", func(p *dhcpv4.DHCPv4) { delete(p.Options, 54) }, "10.20.0.9"},
		{"to another question", func(p *dhcpv4.DHCPv4) { p.TransactionID[0] = 1 }, ""},
		{"an ACK", func(p *dhcpv4.DHCPv4) { p.Options[53] = []byte{5} }, ""},
		{"a question", func(p *dhcpv4.DHCPv4) { p.OpCode = dhcpv4.OpcodeBootRequest }, ""},
		{"a ProxyDHCP offer", func(p *dhcpv4.DHCPv4) { p.YourIPAddr = net.IPv4zero }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw := foreignFrame(tt.change)
			f, ok := foreignOffer(raw, probeXID)
			if ok != (tt.want != "") || ok && f.server.String() != tt.want {
				t.Errorf("foreignOffer = %+v, %v; want server %q", f, ok, tt.want)
			}
		})
	}
}

func TestFrameIsAValidPacket(t *testing.T) {
	src, dst := netip.MustParseAddrPort("10.20.0.2:67"), netip.MustParseAddrPort("10.20.0.15:68")
	for _, payload := range [][]byte{{}, {1}, []byte("some payload"), bytes.Repeat([]byte{0xff}, 301)} {
		b := frame(src, dst, payload)
		if c := fold(sum(0, b[:20])); c != 0xffff {
			t.Errorf("IP header checksum: %04x", c)
		}
		pseudo := sum(17+uint32(len(b)-20), b[12:20])
		if c := fold(sum(pseudo, b[20:])); c != 0xffff {
			t.Errorf("UDP checksum over %d bytes: %04x", len(payload), c)
		}
		s, port, got, ok := unframe(b)
		if !ok || s != src || port != 68 || !bytes.Equal(got, payload) {
			t.Errorf("unframe = %s, %d, %x, %v", s, port, got, ok)
		}
	}
	good := frame(src, dst, []byte("x"))
	for name, f := range map[string]func([]byte){
		"IPv6":             func(b []byte) { b[0] = 0x65 },
		"TCP":              func(b []byte) { b[9] = 6 },
		"a fragment":       func(b []byte) { b[6] = 0x20 },
		"a long header":    func(b []byte) { b[0] = 0x4f },
		"a long total":     func(b []byte) { binary.BigEndian.PutUint16(b[2:], 2000) },
		"a long datagram":  func(b []byte) { binary.BigEndian.PutUint16(b[24:], 2000) },
		"a short datagram": func(b []byte) { binary.BigEndian.PutUint16(b[24:], 7) },
	} {
		b := append([]byte{}, good...)
		f(b)
		if _, _, _, ok := unframe(b); ok {
			t.Errorf("%s was taken", name)
		}
	}
}

func TestProbeFilterPassesOnlyTheClientPort(t *testing.T) {
	vm, err := bpf.NewVM(clientPortFilter)
	if err != nil {
		t.Fatal(err)
	}
	options := append([]byte{0x46}, make([]byte, 60)...)
	options[9] = 17
	binary.BigEndian.PutUint16(options[26:], 68)
	for _, tt := range []struct {
		name string
		b    []byte
		want bool
	}{
		{"an offer", foreignFrame(func(*dhcpv4.DHCPv4) {}), true},
		{"IP options", options, true},
		{"another port", frame(netip.MustParseAddrPort("1.2.3.4:67"), netip.MustParseAddrPort("1.2.3.5:67"), nil), false},
		{"TCP", func() []byte { b := foreignFrame(func(*dhcpv4.DHCPv4) {}); b[9] = 6; return b }(), false},
	} {
		n, err := vm.Run(tt.b)
		if err != nil || (n > 0) != tt.want {
			t.Errorf("%s: passes %d bytes, %v; want %v", tt.name, n, err, tt.want)
		}
	}
}

// The guard's times, in a bubble where they pass at once.
func TestGuardKeepsSilentBesideAnotherServer(t *testing.T) {
	offer := foreign{server: netip.MustParseAddr("10.20.0.9"), mac: net.HardwareAddr{2, 0, 0, 0, 0, 9}, offer: netip.MustParseAddr("10.20.0.50")}
	type step struct {
		at      time.Duration
		state   int32
		finding string
	}
	for _, tt := range []struct {
		name  string
		force bool
		offer func(probe int) (time.Duration, error) // when the n-th probe is answered; 0 never
		steps []step
	}{
		{"alone", false, func(int) (time.Duration, error) { return 0, nil }, []step{
			{time.Second, dutyProbing, ""}, {3 * time.Second, dutyServing, ""}, {7 * time.Second, dutyServing, ""}}},
		{"not alone", false, func(int) (time.Duration, error) { return time.Second, nil }, []step{
			{time.Second + 1, dutySilent, "nothing is answered there"}, {10 * time.Second, dutySilent, "10.20.0.9"}, {5 * time.Minute, dutySilent, "10.20.0.9"}}},
		{"a server that pings first", false, func(int) (time.Duration, error) { return 3 * time.Second, nil }, []step{
			{2500 * time.Millisecond, dutyServing, ""}, {4 * time.Second, dutySilent, "nothing is answered there"}}},
		{"the other one leaves", false, func(n int) (time.Duration, error) {
			if n == 0 {
				return time.Second, nil
			}
			return 0, nil
		}, []step{{10 * time.Second, dutySilent, "10.20.0.9"}, {75 * time.Second, dutyServing, ""}}},
		{"one that comes later cannot switch us off", false, func(n int) (time.Duration, error) {
			if n == 1 {
				return time.Second, nil
			}
			return 0, nil
		}, []step{{7 * time.Second, dutyServing, ""}, {11 * time.Minute, dutyServing, "answers on eth0 beside us"}, {22 * time.Minute, dutyServing, ""}}},
		{"forced", true, func(int) (time.Duration, error) { return time.Second, nil }, []step{
			{1, dutyServing, ""}, {7 * time.Second, dutyServing, "beside us"}}},
		{"no right to look", false, func(int) (time.Duration, error) { return 0, errors.New("no permission") }, []step{
			{time.Second, dutyProbing, "not served, since looking for other DHCP servers does not work: no permission"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var seen atomic.Int32
				s := &Server{Store: newMemStore(), Observe: func(o inventory.Observation) {
					if o.Kind == inventory.SawForeign && o.Remote == offer.server && o.Network == "rack1" {
						seen.Add(1)
					}
				}}
				n := 0
				s.probe = func(ctx context.Context, _ Interface, _ string, found func(foreign)) error {
					after, err := tt.offer(n)
					n++
					if err != nil {
						return err
					}
					if after > 0 {
						time.Sleep(after)
						found(offer)
					}
					<-ctx.Done()
					return nil
				}
				s.init()
				set := rack()
				set.Networks[0].Force = tt.force
				eth := iface(2, "eth0", "10.20.0.2/24")
				d := newDuty(site{network: set.Networks[0], iface: &eth, server: ourAddr})
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { s.guard(ctx, d); close(done) }()
				start := time.Now()
				for _, st := range tt.steps {
					time.Sleep(st.at - time.Since(start))
					synctest.Wait()
					if got := d.state.Load(); got != st.state {
						t.Errorf("after %s: state %d; want %d", st.at, got, st.state)
					}
					all := strings.Join(s.Findings(), "; ")
					if !strings.Contains(all, st.finding) || st.finding == "" && all != "" {
						t.Errorf("after %s: findings %q; want %q", st.at, all, st.finding)
					}
					if strings.Contains(st.finding, "10.20.0.9") && seen.Load() == 0 {
						t.Errorf("after %s: nothing was observed", st.at)
					}
				}
				cancel()
				<-done
			})
		})
	}
}

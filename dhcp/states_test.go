package dhcp

import (
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
)

// RFC 2131 §4.1: the first of these that holds decides.
func TestReplyGoesToRelayBroadcastClientOrHardwareInThatOrder(t *testing.T) {
	const addr = "10.20.0.15"
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		want   string
	}{
		{"offer: relay before all", message(DISCOVER, macDeclared, giaddr("10.20.0.254"), wantsBroadcast, ciaddr(addr)), "OFFER 10.20.0.15 to 10.20.0.254:67"},
		{"offer: broadcast flag", message(DISCOVER, macDeclared, wantsBroadcast), "OFFER 10.20.0.15 to 255.255.255.255:68"},
		{"offer: hardware address", message(DISCOVER, macDeclared), "OFFER 10.20.0.15 to 10.20.0.15:68 at " + macDeclared},
		{"ack: relay before the client's address", message(REQUEST, macDeclared, ciaddr(addr), giaddr("10.20.0.254")), "ACK 10.20.0.15 to 10.20.0.254:67; bound 10.20.0.15 for 1h0m0s"},
		{"ack: the client's address before its broadcast flag", message(REQUEST, macDeclared, ciaddr(addr), wantsBroadcast), "ACK 10.20.0.15 to 10.20.0.15:68; bound 10.20.0.15 for 1h0m0s"},
		{"ack: broadcast flag", message(REQUEST, macDeclared, requested(addr), serverID("10.20.0.2"), wantsBroadcast), "ACK 10.20.0.15 to 255.255.255.255:68; bound 10.20.0.15 for 1h0m0s"},
		{"ack: hardware address", message(REQUEST, macDeclared, requested(addr), serverID("10.20.0.2")), "ACK 10.20.0.15 to 10.20.0.15:68 at " + macDeclared + "; bound 10.20.0.15 for 1h0m0s"},
		{"ack: an address that is not confirmed aims nothing", message(REQUEST, macDeclared, requested(addr), serverID("10.20.0.2"), ciaddr("10.20.0.77")), "ACK 10.20.0.15 to 10.20.0.15:68 at " + macDeclared + "; bound 10.20.0.15 for 1h0m0s"},
		{"nak: relay", message(REQUEST, macDeclared, requested("10.20.0.16"), giaddr("10.20.0.254")), "NAK to 10.20.0.254:67"},
		{"nak: broadcast, whatever the client claims", message(REQUEST, macDeclared, ciaddr("10.20.0.16")), "NAK to 255.255.255.255:68"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := brief(ask(t, rack(), tt.packet, nil)); got != tt.want {
				t.Errorf("%s; want %s", got, tt.want)
			}
		})
	}
}

// The client has no valid address: only the relay's broadcast reaches it (§4.3.2).
func TestNakThroughARelayIsToBeBroadcast(t *testing.T) {
	for _, tt := range []struct {
		name   string
		packet *dhcpv4.DHCPv4
		flag   bool
	}{
		{"init-reboot", message(REQUEST, macDeclared, requested("10.20.0.16"), giaddr("10.20.0.254")), true},
		{"selecting", message(REQUEST, macDeclared, requested("10.20.0.16"), serverID("10.20.0.2"), giaddr("10.20.0.254")), true},
		{"rebinding", message(REQUEST, macDeclared, ciaddr("10.20.0.16"), giaddr("10.20.0.254")), true},
		{"without a relay the flag is the client's", message(REQUEST, macDeclared, requested("10.20.0.16")), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := ask(t, rack(), tt.packet, nil)
			if o.packet == nil || o.packet.MessageType() != dhcpv4.MessageTypeNak || o.packet.IsBroadcast() != tt.flag {
				t.Errorf("%s, broadcast flag wanted: %v", brief(o), tt.flag)
			}
		})
	}
}

func TestChoosingAnotherServerFreesOurOffer(t *testing.T) {
	r := newRig(t, rack())
	r.put(message(DISCOVER, macStranger, requested("10.20.0.130")))
	if got := r.get().YourIPAddr.String(); got != "10.20.0.130" {
		t.Fatalf("offered %s", got)
	}
	if why := r.silence(message(REQUEST, macStranger, requested("10.20.0.130"), serverID("10.20.0.3"))); why != "another server was chosen" {
		t.Fatalf("silent: %s", why)
	}
	r.put(message(DISCOVER, macOther, requested("10.20.0.130")))
	if got := r.get().YourIPAddr.String(); got != "10.20.0.130" {
		t.Errorf("the next one that asks for 10.20.0.130 is offered %s", got)
	}
}

// Firmware, iPXE and the system call themselves differently (options 61, 97):
// the reservation goes by the hardware address, and 61 comes back (RFC 6842).
func TestReservationHoldsWhateverTheClientCallsItself(t *testing.T) {
	for _, tt := range []struct {
		name string
		id   []byte
	}{
		{"no identifier", nil},
		{"the hardware address", []byte{1, 0x52, 0x54, 0, 0, 0, 5}},
		{"another hardware address", []byte{1, 0x52, 0x54, 0, 0, 0, 6}},
		{"a DUID", []byte{0xff, 1, 2, 3, 4, 0, 2, 0, 0, 0xab, 0x11, 1, 2, 3, 4, 5, 6, 7, 8}},
		{"a UUID", append([]byte{0}, []byte("0123456789abcdef")...)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := message(REQUEST, macDeclared, requested("10.20.0.15"), serverID("10.20.0.2"))
			if tt.id != nil {
				p.Options[61] = tt.id
			}
			o := ask(t, rack(), p, nil)
			if got := addr4(o.packet.YourIPAddr).String(); got != "10.20.0.15" || string(o.packet.Options[61]) != string(tt.id) {
				t.Errorf("%s, identifier %x", got, o.packet.Options[61])
			}
		})
	}
}

// A port that waits for spanning tree lets the first DISCOVERs through late and
// several at once; none is treated otherwise than the first.
func TestRepeatedAndLatePacketsGetTheSameAnswer(t *testing.T) {
	for _, tt := range []struct {
		name string
		secs uint16
		wait time.Duration
	}{
		{"at once", 0, 0}, {"the same again", 0, 0}, {"a second later", 1, time.Second},
		{"after spanning tree", 50, 50 * time.Second}, {"never set", 0, time.Minute}, {"counting in hundredths", 0xffff, time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, rack())
			p := message(DISCOVER, macStranger, func(p *dhcpv4.DHCPv4) { p.NumSeconds = tt.secs })
			r.put(p)
			first := r.get()
			r.pass(tt.wait)
			r.receive(t.Context(), r.link, p.ToBytes(), broadcast.Addr()) // the same transaction
			again := r.get()
			if again.TransactionID != first.TransactionID || !again.YourIPAddr.Equal(first.YourIPAddr) {
				t.Errorf("offered %s, then %s", first.YourIPAddr, again.YourIPAddr)
			}
			ack := message(REQUEST, macStranger, requested(first.YourIPAddr.String()), serverID("10.20.0.2"))
			for range 2 {
				r.receive(t.Context(), r.link, ack.ToBytes(), broadcast.Addr())
				if got := r.get(); got.MessageType() != dhcpv4.MessageTypeAck || !got.YourIPAddr.Equal(first.YourIPAddr) {
					t.Errorf("got %s", got.Summary())
				}
			}
			if n := len(r.mem.leases(t)); n != 1 {
				t.Errorf("%d leases", n)
			}
		})
	}
}

func TestInformIsAnsweredWithoutAddressAndLease(t *testing.T) {
	o := ask(t, rack(), message(INFORM, macDeclared, ciaddr("10.20.0.50"), wantsBroadcast), nil)
	if got, want := brief(o), "ACK to 10.20.0.50:68"; got != want {
		t.Fatalf("%s; want %s", got, want)
	}
	for _, code := range []uint8{51, 58, 59} {
		if o.packet.Options.Has(dhcpv4.GenericOptionCode(code)) {
			t.Errorf("option %d in the answer to an INFORM", code)
		}
	}
	if addr4(o.packet.YourIPAddr).IsValid() || o.lease != nil {
		t.Errorf("yiaddr %s, lease %v", o.packet.YourIPAddr, o.lease)
	}
}

package inventory

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Port is where a cable ends, as the relay in front of it says it: DHCP option 82
// (RFC 3046), or options 18 and 37 of DHCPv6 (interface ID, and remote ID without its
// enterprise number). Remote and Relay are compared where they are given. Circuit and
// Remote are spelled as PortID does.
type Port struct {
	Circuit string     `json:"circuit"`
	Remote  string     `json:"remote,omitempty"`
	Relay   netip.Addr `json:"relay,omitzero"`
}

// PortID spells what a switch calls itself or a port of it: as text where it is
// text, else in hex behind 0x. Each value has one spelling.
func PortID(b []byte) string {
	s := string(b)
	if portText(s) {
		return s
	}
	return "0x" + hex.EncodeToString(b)
}

func portText(s string) bool {
	if s == "" || strings.HasPrefix(s, "0x") || strings.TrimSpace(s) != s {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' })
}

// parsePortID reads what a person wrote as PortID spells it.
func parsePortID(s string) (string, error) {
	b := []byte(s)
	if digits, ok := strings.CutPrefix(s, "0x"); ok {
		var err error
		if b, err = hex.DecodeString(digits); err != nil || len(b) == 0 {
			return "", fmt.Errorf("bad hex %q: want an even number of digits behind 0x", s)
		}
	} else if !portText(s) {
		return "", fmt.Errorf("bad value %q: want printable ASCII without spaces at its ends, or hex behind 0x", s)
	}
	if len(b) > 255 {
		return "", fmt.Errorf("%d bytes are too long: an option holds at most 255", len(b))
	}
	return PortID(b), nil
}

// Matches reports whether the seen port, which has every field the relay gave,
// is this one.
func (p Port) Matches(seen Port) bool {
	return p.Circuit != "" && p.Circuit == seen.Circuit && (p.Remote == "" || p.Remote == seen.Remote) &&
		(!p.Relay.IsValid() || p.Relay == seen.Relay)
}

// overlaps reports whether one packet could come from both.
func (p Port) overlaps(q Port) bool {
	return p.Circuit == q.Circuit && (p.Remote == "" || q.Remote == "" || p.Remote == q.Remote) &&
		(!p.Relay.IsValid() || !q.Relay.IsValid() || p.Relay == q.Relay)
}

// String is the port as it stands in a Machine.
func (p Port) String() string {
	s := fmt.Sprintf("{circuit: %q", p.Circuit)
	if p.Remote != "" {
		s += fmt.Sprintf(", remote: %q", p.Remote)
	}
	if p.Relay.IsValid() {
		s += ", relay: " + p.Relay.String()
	}
	return s + "}"
}

// PortPrefix is where the records of learned ports stand: PortPrefix + network +
// "/" + the declared port's Key. Only dhcp writes them; the engine reads them to
// know whose a hardware address is.
const PortPrefix = "/recast/ports/"

// Key names the port in a store key.
func (p Port) Key() string {
	return strings.TrimPrefix(DigestOf([]byte(p.String())).String(), "sha256:")[:32]
}

// PortRecord says which hardware address the machine behind a declared port has.
// It is durable before that machine gets an answer.
type PortRecord struct {
	Network string    `json:"network"`
	Port    Port      `json:"port"` // as declared
	MAC     MAC       `json:"mac"`
	Since   time.Time `json:"since"`
}

// portOn is a declared port of a Network.
type portOn struct {
	network string
	port    Port
}

// MachineByPort finds the machine that declares exactly this port for an interface
// without a hardware address.
func (s *Set) MachineByPort(network string, declared Port) *Machine {
	return s.byPort[portOn{network, declared}]
}

// portClaim is a declared port with its owner.
type portClaim struct {
	Port
	owner
}

// buildPort reads the port of an interface, nil where there is none or a bad one.
func (s scope) buildPort(machine string, raw rawPort, network text, at string) *Port {
	if raw.Line == 0 || !raw.Circuit.given() {
		return nil
	}
	var p Port
	ok := true
	for _, f := range []struct {
		field string
		t     text
		into  *string
	}{{"circuit", raw.Circuit, &p.Circuit}, {"remote", raw.Remote, &p.Remote}} {
		if !f.t.given() {
			continue
		}
		id, err := parsePortID(f.t.V)
		if err != nil {
			s.problem(f.t.Line, at+"port."+f.field, err.Error(), "copy it as recast shows it of a machine that asked there")
			ok = false
		}
		*f.into = id
	}
	n := s.b.network[network.V] // nil where it was refused
	if t := raw.Relay; t.given() {
		var subnet netip.Prefix
		if n != nil {
			subnet = n.Subnet
		}
		a, err := parseAddr(t.V, subnet)
		if err != nil {
			s.fail(t.Line, at+"port.relay", err)
			ok = false
		}
		p.Relay = a
	}
	if !ok {
		return nil
	}
	switch {
	case !network.given():
		s.problem(raw.Line, at+"network", "a port is a port of one network", "name the Network its machine is on")
		return nil
	case n == nil:
		return nil
	case n.DHCP != DHCPAuthoritative:
		s.problem(raw.Line, at+"port", fmt.Sprintf("network %q has dhcp: %s, where recast does not learn who is behind a port", n.Name, n.DHCP), "give its mac instead, or set dhcp: authoritative")
		return nil
	}
	bucket := portOn{n.Name, Port{Circuit: p.Circuit}}
	for _, other := range s.b.ports[bucket] {
		if p.overlaps(other.Port) {
			s.problem(raw.Line, at+"port", fmt.Sprintf("what asks at %s may ask at %s too, declared by machine %q at %s", p, other.Port, other.machine, other.place), "correct one of them, or give both the remote or relay they differ in")
			return nil
		}
	}
	s.b.ports[bucket] = append(s.b.ports[bucket], portClaim{p, owner{machine, place{s.file, raw.Line}}})
	return &p
}

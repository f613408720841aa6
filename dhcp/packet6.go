package dhcp

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"recast/inventory"
	"recast/ipxe"
)

const (
	badSender   badPacket = "sender's address"
	badClientID badPacket = "client identifier"
	badServerID badPacket = "server identifier"
	badIA       badPacket = "identity association"
	badRelay    badPacket = "relay message"
	// We never offer option 12, which would permit it (RFC 8415 §21.12).
	badUnicast badPacket = "client's message where relays send"
)

const (
	// maxHops6 relays stand between a client and us (RFC 8415 §7.6).
	maxHops6 = 8
	// maxDUID with its type (RFC 8415 §11.1).
	maxDUID = 130
	// intel is the enterprise number that PXE's vendor class stands under.
	intel = 343
)

// request6 is a decoded DHCPv6 message with everything the decision needs taken
// out of it.
type request6 struct {
	kind     dhcpv6.MessageType
	relays   []relay6   // outermost first
	from     netip.Addr // who sent it to us: the client, or the last relay
	port     uint16     // and from which port
	peer     netip.Addr // the client's own address on its link
	link     netip.Addr // an address of the client's link, where a relay says one
	clientID []byte
	serverID []byte
	ias      []ia
	others   []ia // of temporary addresses and prefixes, which we give none of
	rapid    bool
}

// relay6 is one RELAY-FORW around the message.
type relay6 struct {
	hops        byte
	link, peer  netip.Addr
	interfaceID []byte // nil: none was given
	remoteID    []byte // without its enterprise number; nil: none was given
	sourcePort  []byte // nil: it is answered on the servers' port (RFC 8357)
	hardware    inventory.MAC
}

// ia is an identity association. Only the first of IA_NA gets an address: a
// machine has one, whatever it counts (see reply6).
type ia struct {
	code  dhcpv6.OptionCode
	id    [4]byte
	addrs []netip.Addr
}

// decode6 turns the bytes of one datagram into a request. from is its sender, hw
// the sender's hardware address where the link told it. Every error is a badPacket.
func decode6(raw []byte, from netip.Addr, hw inventory.MAC) (*request, error) {
	m := &request6{from: from}
	for len(raw) > 0 && dhcpv6.MessageType(raw[0]) == dhcpv6.MessageTypeRelayForward {
		r, inner, err := decodeRelay6(raw)
		if err != nil {
			return nil, err
		}
		if m.relays = append(m.relays, r); len(m.relays) > maxHops6+1 {
			return nil, badHops
		}
		if !r.link.IsUnspecified() && !r.link.IsLinkLocalUnicast() {
			m.link = r.link // of the relay nearest to the client that says one
		}
		raw = inner
	}
	const header = 4
	if len(raw) < header {
		return nil, badShort
	}
	m.kind = dhcpv6.MessageType(raw[0])
	// Nothing of an IPv4 packet is in it; the queue and the log ask these.
	r := &request{packet4: &packet4{TransactionID: dhcpv4.TransactionID{0, raw[1], raw[2], raw[3]}}, six: m}
	switch m.kind {
	case dhcpv6.MessageTypeSolicit:
		r.kind = dhcpv4.MessageTypeDiscover
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeConfirm:
		r.kind = dhcpv4.MessageTypeRequest
	case dhcpv6.MessageTypeInformationRequest:
		r.kind = dhcpv4.MessageTypeInform
	case dhcpv6.MessageTypeDecline:
		r.kind = dhcpv4.MessageTypeDecline
	case dhcpv6.MessageTypeRelease:
		r.kind = dhcpv4.MessageTypeRelease
	case dhcpv6.MessageTypeAdvertise, dhcpv6.MessageTypeReply, dhcpv6.MessageTypeReconfigure, dhcpv6.MessageTypeRelayReply:
		return nil, badOp
	default:
		return nil, badType
	}
	m.peer = from
	if n := len(m.relays); n > 0 {
		m.peer = m.relays[n-1].peer
		r.giaddr, hw = m.link, ""
		for _, relay := range slices.Backward(m.relays) {
			if hw = relay.hardware; hw != "" {
				break
			}
		}
		// The switch is the relay nearest to the client that names a port (RFC 6221 has
		// one without an address); a router behind it names its own.
		for _, relay := range slices.Backward(m.relays) {
			if len(relay.interfaceID) > 0 {
				r.port = inventory.Port{Circuit: inventory.PortID(relay.interfaceID), Relay: m.link}
				if len(relay.remoteID) > 0 {
					r.port.Remote = inventory.PortID(relay.remoteID)
				}
				break
			}
		}
	} else if !from.IsLinkLocalUnicast() {
		return nil, badSender
	}
	r.mac = hw
	if err := r.decodeOptions6(raw[header:]); err != nil {
		return nil, err
	}
	return r, m.valid()
}

// valid is RFC 8415 §16: what each message must and must not hold.
func (m *request6) valid() error {
	hasServer := m.serverID != nil
	switch m.kind {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind:
		if hasServer {
			return badServerID
		}
	case dhcpv6.MessageTypeInformationRequest:
		if len(m.ias)+len(m.others) > 0 {
			return badIA
		}
		return nil
	default:
		if !hasServer {
			return badServerID
		}
	}
	if m.clientID == nil {
		return badClientID
	}
	return nil
}

func decodeRelay6(raw []byte) (r relay6, inner []byte, err error) {
	const header = 34
	if len(raw) < header {
		return r, nil, badShort
	}
	if r.hops = raw[1]; r.hops > maxHops6 {
		return r, nil, badHops
	}
	r.link, r.peer = netip.AddrFrom16([16]byte(raw[2:18])), netip.AddrFrom16([16]byte(raw[18:34]))
	bad := walk6(raw[header:], func(code dhcpv6.OptionCode, v []byte) error {
		switch code {
		case dhcpv6.OptionRelayMsg:
			if inner != nil || len(v) == 0 {
				return badRelay
			}
			inner = v
		case dhcpv6.OptionInterfaceID:
			if r.interfaceID != nil {
				return badOptions
			}
			r.interfaceID = append([]byte{}, v...)
		case dhcpv6.OptionRelayPort: // RFC 8357
			if len(v) == 2 {
				r.sourcePort = append([]byte{}, v...)
			}
		case dhcpv6.OptionRemoteID: // RFC 4649
			if len(v) > 4 {
				r.remoteID = append([]byte{}, v[4:]...)
			}
		case dhcpv6.OptionClientLinkLayerAddr: // RFC 6939
			if len(v) == 8 && binary.BigEndian.Uint16(v) == uint16(iana.HWTypeEthernet) {
				r.hardware = stationAddr(v[2:])
			}
		}
		return nil
	})
	if bad == nil && inner == nil {
		bad = badRelay
	}
	return r, inner, bad
}

// walk6 visits options in their order.
func walk6(b []byte, visit func(code dhcpv6.OptionCode, v []byte) error) error {
	for len(b) > 0 {
		if len(b) < 4 {
			return badOptions
		}
		n := int(binary.BigEndian.Uint16(b[2:]))
		if 4+n > len(b) {
			return badOptions
		}
		if err := visit(dhcpv6.OptionCode(binary.BigEndian.Uint16(b)), b[4:4+n:4+n]); err != nil {
			return err
		}
		b = b[4+n:]
	}
	return nil
}

// decodeOptions6 keeps what an answer depends on. Options that we have no use for
// may hold anything. The bytes that are kept are copies.
func (r *request) decodeOptions6(b []byte) error {
	m := r.six
	var archs []uint16
	var class string
	isIPXE := false
	err := walk6(b, func(code dhcpv6.OptionCode, v []byte) error {
		switch code {
		case dhcpv6.OptionClientID:
			if m.clientID != nil || len(v) < 3 || len(v) > maxDUID {
				return badClientID
			}
			m.clientID = slices.Clone(v)
		case dhcpv6.OptionServerID:
			if m.serverID != nil || len(v) < 3 || len(v) > maxDUID {
				return badServerID
			}
			m.serverID = slices.Clone(v)
		case dhcpv6.OptionIANA, dhcpv6.OptionIATA, dhcpv6.OptionIAPD:
			a, err := decodeIA(code, v)
			if err != nil {
				return err
			}
			if code == dhcpv6.OptionIANA {
				m.ias = append(m.ias, a)
			} else {
				m.others = append(m.others, a)
			}
		case dhcpv6.OptionRapidCommit:
			m.rapid = true
		case dhcpv6.OptionClientArchType:
			for ; len(v) >= 2; v = v[2:] {
				archs = append(archs, binary.BigEndian.Uint16(v))
			}
		case dhcpv6.OptionVendorClass:
			// Whatever the enterprise: some firmware says its own there.
			if list := counted(v, 4); len(list) > 0 && class == "" {
				class = string(list[0])
			}
		case dhcpv6.OptionUserClass:
			isIPXE = isIPXE || slices.ContainsFunc(counted(v, 0), func(c []byte) bool { return string(c) == "iPXE" })
		case dhcpv6.OptionFQDN:
			if len(v) > 1 {
				r.hostname = domainName(v[1:])
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(m.ias) > 0 && len(m.ias[0].addrs) > 0 {
		r.requested = m.ias[0].addrs[0]
	}
	r.client = client6(archs, class, isIPXE)
	return nil
}

// decodeIA reads an identity association: its number and the addresses in it.
func decodeIA(code dhcpv6.OptionCode, v []byte) (ia, error) {
	head := 12
	if code == dhcpv6.OptionIATA {
		head = 4
	}
	if len(v) < head {
		return ia{}, badIA
	}
	a := ia{code: code, id: [4]byte(v)}
	err := walk6(v[head:], func(code dhcpv6.OptionCode, v []byte) error {
		if code != dhcpv6.OptionIAAddr {
			return nil
		}
		if len(v) < 24 {
			return badIA
		}
		if addr := netip.AddrFrom16([16]byte(v)); !addr.IsUnspecified() && !addr.Is4In6() {
			a.addrs = append(a.addrs, addr)
		}
		return nil
	})
	if err != nil {
		return ia{}, badIA
	}
	return a, nil
}

// counted are the parts, each with its length before it, that follow skip bytes.
func counted(v []byte, skip int) (list [][]byte) {
	if len(v) < skip {
		return nil
	}
	for v = v[skip:]; len(v) >= 2; {
		n := int(binary.BigEndian.Uint16(v))
		if 2+n > len(v) {
			return list
		}
		list, v = append(list, v[2:2+n]), v[2+n:]
	}
	return list
}

// domainName reads DNS labels, "" where they are not a host's name.
func domainName(v []byte) string {
	var labels []string
	for len(v) > 0 && v[0] != 0 {
		n := int(v[0])
		if n > 63 || 1+n > len(v) {
			return ""
		}
		labels, v = append(labels, string(v[1:1+n])), v[1+n:]
	}
	return hostname([]byte(strings.Join(labels, ".")))
}

// client6 says who is asking: option 61 is DHCPv4's 93, the vendor class (16) its
// 60, the user class (15) its 77.
func client6(archs []uint16, class string, isIPXE bool) ipxe.Client {
	list := make([]byte, 0, 2*len(archs))
	for _, a := range archs {
		list = binary.BigEndian.AppendUint16(list, a)
	}
	var o options
	o.Put(dhcpv4.OptionClassIdentifier, []byte(class))
	if len(list) > 0 {
		o.Put(dhcpv4.OptionClientSystemArchitectureType, list)
	}
	if isIPXE {
		o.Put(dhcpv4.OptionUserClassInformation, []byte("iPXE"))
	}
	return client(o, "")
}

// identify finds the machine behind the message: by what the link or the relay
// says of its hardware address; else by what it says of itself, where that fits a
// declared machine first.
func (r *request) identify(c *config) {
	m := r.six
	hardware, id := duid(m.clientID)
	uuids := [2]string{}
	if id != nil {
		uuids = duidUUIDs(id)
		if r.client.Loader == ipxe.LoaderIPXE {
			r.client.UUID = uuids[0]
		}
	}
	if r.mac == "" {
		candidates := []inventory.MAC{eui64(m.peer), hardware, c.stationOf(uuids, m.link)}
		for _, mac := range candidates {
			if _, known := c.byMAC[mac]; known && r.mac == "" {
				r.mac = mac
			}
		}
		for _, mac := range candidates {
			if r.mac == "" {
				r.mac = mac
			}
		}
	}
	if d, known := c.byMAC[r.mac]; known {
		for _, u := range uuids {
			if u != "" && slices.Contains(c.byUUID[u], r.mac) && !d.bmc {
				r.client.UUID = u
			}
		}
	}
	r.client.MAC = r.mac
}

// stationOf is the interface of the machine with that UUID: the one on the
// Network of the link, or its only one.
func (c *config) stationOf(uuids [2]string, link netip.Addr) inventory.MAC {
	n := c.networkOf(link)
	for _, u := range uuids {
		macs := c.byUUID[u]
		if len(macs) == 1 {
			return macs[0]
		}
		for _, mac := range macs {
			if n != nil && c.byMAC[mac] != nil && c.byMAC[mac].on(n).IsValid() {
				return mac
			}
		}
	}
	return ""
}

// duid takes the hardware address (DUID-LLT, DUID-LL) or the UUID (RFC 6355) out
// of a DUID.
func duid(id []byte) (hardware inventory.MAC, uuid []byte) {
	if len(id) < 2 {
		return "", nil
	}
	v := id[2:]
	switch dhcpv6.DUIDType(binary.BigEndian.Uint16(id)) {
	case dhcpv6.DUID_LLT:
		if len(v) == 12 && binary.BigEndian.Uint16(v) == uint16(iana.HWTypeEthernet) {
			return stationAddr(v[6:]), nil
		}
	case dhcpv6.DUID_LL:
		if len(v) == 8 && binary.BigEndian.Uint16(v) == uint16(iana.HWTypeEthernet) {
			return stationAddr(v[2:]), nil
		}
	case dhcpv6.DUID_UUID:
		if len(v) == 16 {
			return "", v
		}
	}
	return "", nil
}

// duidUUIDs are both readings of a DUID-UUID: in network order, as the RFC and
// iPXE have it, and as SMBIOS stores it, which edk2 copies.
func duidUUIDs(v []byte) [2]string {
	stored := uuid(append([]byte{0}, v...))
	if stored == "" { // all zeros or ones
		return [2]string{}
	}
	return [2]string{fmt.Sprintf("%x-%x-%x-%x-%x", v[:4], v[4:6], v[6:8], v[8:10], v[10:]), stored}
}

// eui64 is the hardware address that a link-local address was made from (RFC 4291
// appendix A), "" where it was not.
func eui64(a netip.Addr) inventory.MAC {
	b := a.As16()
	if !a.IsLinkLocalUnicast() || b[11] != 0xff || b[12] != 0xfe {
		return ""
	}
	return stationAddr([]byte{b[8] ^ 2, b[9], b[10], b[13], b[14], b[15]})
}

// stationAddr is the hardware address of one interface, "" for a group's and zero.
func stationAddr(b []byte) inventory.MAC {
	if len(b) != 6 || b[0]&1 != 0 || [6]byte(b) == [6]byte{} {
		return ""
	}
	return inventory.MACOf(net.HardwareAddr(b))
}

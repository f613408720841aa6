package dhcp

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"recast/inventory"
	"recast/ipxe"
)

// Options the library has no name for.
const (
	optUUID    = dhcpv4.GenericOptionCode(97)  // RFC 4578 client machine identifier
	optEncap   = dhcpv4.GenericOptionCode(175) // iPXE's encapsulated options
	optNoProxy = 0xb0                          // within 175: do not wait for a ProxyDHCP server

	subTrace            = 69                           // within 43 and 175: the attempt's trace, as text
	subCircuit          = dhcpv4.GenericOptionCode(1)  // within 82, RFC 3046
	subRemote           = dhcpv4.GenericOptionCode(2)  // likewise
	subLinkSelection    = dhcpv4.GenericOptionCode(5)  // within 82, RFC 3527
	subServerIDOverride = dhcpv4.GenericOptionCode(11) // within 82, RFC 5107
	subRelayPort        = dhcpv4.GenericOptionCode(19) // within 82, RFC 8357
)

// badPacket is the reason a packet is not even looked at; it is a counter's name.
type badPacket string

func (b badPacket) Error() string { return "drop packet: " + string(b) }

const (
	badShort    badPacket = "short"
	badCookie   badPacket = "cookie"
	badOptions  badPacket = "options"
	badOp       badPacket = "not a request"
	badHardware badPacket = "hardware address"
	badType     badPacket = "message type"
	badHops     badPacket = "hops"
)

// maxHops a relayed packet may have made (RFC 1542 §4.1.1).
const maxHops = 16

// request is a decoded packet with everything the decision needs taken out of
// it. Absent addresses are the zero netip.Addr, never 0.0.0.0.
type request struct {
	*packet4
	kind      dhcpv4.MessageType
	mac       inventory.MAC
	client    ipxe.Client // Network is filled in once it is known
	ciaddr    netip.Addr
	giaddr    netip.Addr
	requested netip.Addr // option 50
	serverID  netip.Addr // option 54
	port      inventory.Port
	link      netip.Addr // option 82.5: the subnet, where giaddr is not in it
	subnet    netip.Addr // option 118: the subnet that the client wants (RFC 3011)
	override  netip.Addr // option 82.11: the server identifier the relay wants
	ownPort   bool       // option 82.19: the relay is answered where it asked from
	hostname  string
	six       *request6 // of a DHCPv6 message; all but the embedded packet holds for both

	raw  []byte  // that packet points into
	four packet4 // of IPv4
	// Of a request that is used again, so are its answer and that one's bytes.
	again    bool
	reply    packet4
	out      []byte
	question question // that the server asks about it
}

// decode turns the bytes of one datagram into a request, which points into them.
// Every error is a badPacket.
func decode(raw []byte) (*request, error) {
	r := &request{raw: raw}
	if _, err := peek(raw); err != nil {
		return nil, err
	}
	r.mac = inventory.MACOf(net.HardwareAddr(raw[28:34]))
	return r, r.read()
}

// read fills the request from its bytes, which peek has let pass.
func (r *request) read() error {
	p := &r.four
	if err := parsePacket(p, r.raw); err != nil {
		return err
	}
	if err := unfold(p, r.raw); err != nil {
		return err
	}
	r.packet4 = p
	r.ciaddr, r.giaddr = addr4(p.ClientIPAddr[:]), addr4(p.GatewayIPAddr[:])
	r.requested = addr4(p.Options.Get(dhcpv4.OptionRequestedIPAddress))
	r.serverID = addr4(p.Options.Get(dhcpv4.OptionServerIdentifier))
	r.subnet = addr4(p.Options.Get(dhcpv4.OptionSubnetSelection))
	r.hostname = hostname(p.Options.Get(dhcpv4.OptionHostName))
	t := p.Options.Get(dhcpv4.OptionDHCPMessageType)
	if len(t) != 1 {
		return badType
	}
	switch r.kind = dhcpv4.MessageType(t[0]); r.kind {
	case dhcpv4.MessageTypeDiscover, dhcpv4.MessageTypeRequest, dhcpv4.MessageTypeDecline,
		dhcpv4.MessageTypeRelease, dhcpv4.MessageTypeInform:
	default:
		return badType
	}
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionRequestedIPAddress, dhcpv4.OptionServerIdentifier} {
		if p.Options.Has(code) && len(p.Options.Get(code)) != 4 {
			return badOptions
		}
	}
	if agent := p.Options.Get(dhcpv4.OptionRelayAgentInformation); agent != nil {
		var sub options
		// What is inside is the relay's business: it is echoed whatever it says.
		if parseOptions(&sub, agent, false) == nil {
			r.link = addr4(sub.Get(subLinkSelection))
			r.override = addr4(sub.Get(subServerIDOverride))
			r.ownPort = sub.Has(subRelayPort)
			// A switch may add it and relay nothing: then there is no giaddr.
			if id := sub.Get(subCircuit); len(id) > 0 {
				r.port = inventory.Port{Circuit: inventory.PortID(id), Relay: r.giaddr}
				if id := sub.Get(subRemote); len(id) > 0 {
					r.port.Remote = inventory.PortID(id)
				}
			}
		}
	}
	r.client = client(p.Options, r.mac)
	return nil
}

// unfold adds the options that stand in the file and sname fields (option 52,
// RFC 2132 §9.3), in the order RFC 3396 §5 demands.
func unfold(p *packet4, raw []byte) error {
	overload := p.Options.Get(dhcpv4.OptionOptionOverload)
	if overload == nil {
		return nil
	}
	if len(overload) != 1 || overload[0] < 1 || overload[0] > 3 {
		return badOptions
	}
	how := overload[0]
	p.Options.Del(dhcpv4.OptionOptionOverload)
	if how&1 != 0 {
		if parseOptions(&p.Options, raw[108:236], false) != nil {
			return badOptions
		}
		p.BootFileName = ""
	}
	if how&2 != 0 {
		if parseOptions(&p.Options, raw[44:108], false) != nil {
			return badOptions
		}
		p.ServerHostName = ""
	}
	return nil
}

// client says who is asking, as far as the packet tells.
func client(o options, mac inventory.MAC) ipxe.Client {
	class := o.Get(dhcpv4.OptionClassIdentifier)
	arch, hasArch := firmware(o.Get(dhcpv4.OptionClientSystemArchitectureType), class)
	if arch == ipxe.FirmwareBIOS && isRaspberryPi(mac, o.Get(optUUID)) {
		arch = ipxe.FirmwareRaspberryBoot
	}
	c := ipxe.Client{MAC: mac, UUID: uuid(o.Get(optUUID)), Arch: arch, Loader: ipxe.LoaderOS}
	switch {
	// iPXE keeps the firmware's class (60) when it was chain-loaded, so its own
	// marks come first.
	case isIPXE(o):
		c.Loader = ipxe.LoaderIPXE
	case bytes.HasPrefix(class, []byte("HTTPClient")):
		c.Loader = ipxe.LoaderHTTP
	// Some ROMs leave out 93, 94 and 97, U-Boot has a class of its own: either
	// mark is enough.
	case bytes.HasPrefix(class, []byte("PXEClient")):
		c.Loader = ipxe.LoaderFirmware
	case hasArch && arch.HTTP():
		c.Loader = ipxe.LoaderHTTP
	case hasArch:
		c.Loader = ipxe.LoaderFirmware
	}
	return c
}

// isIPXE knows both encodings of option 77 in the field, the bare string that
// iPXE sends and the counted one of RFC 3004, and option 175, which stays when
// a user class set by hand hides the mark.
func isIPXE(o options) bool {
	const mark = "iPXE"
	if o.Has(optEncap) {
		return true
	}
	class := o.Get(dhcpv4.OptionUserClassInformation)
	if string(class) == mark {
		return true
	}
	for len(class) > 0 {
		n := int(class[0])
		if n == 0 || n >= len(class) {
			return false
		}
		if string(class[1:1+n]) == mark {
			return true
		}
		class = class[1+n:]
	}
	return false
}

// firmware is the architecture of option 93, which may be a list, else the one
// written in the vendor class ("PXEClient:Arch:00007:UNDI:003016").
func firmware(option, class []byte) (ipxe.Firmware, bool) {
	list := make([]uint16, 0, 8)
	for ; len(option) >= 2; option = option[2:] {
		list = append(list, binary.BigEndian.Uint16(option))
	}
	if len(list) > 0 {
		return ipxe.PickFirmware(list), true
	}
	if f := strings.Split(string(class), ":"); len(f) >= 3 && f[1] == "Arch" {
		if n, err := strconv.ParseUint(f[2], 10, 16); err == nil {
			return ipxe.Firmware(n), true
		}
	}
	return 0, false
}

// isRaspberryPi: the boot ROM and the EEPROM of a Raspberry Pi say that they are
// an x86 BIOS (option 93 is 0). What tells them is option 97 of the Pi 3 (only
// 0x44) and of the Pi 4 and 5 ("RPi4", "RPi5"), which can be set, or the vendor's
// part of the hardware address.
func isRaspberryPi(mac inventory.MAC, id []byte) bool {
	if len(id) == 17 && (bytes.HasPrefix(id[1:], []byte("RPi")) || bytes.Count(id[1:], []byte{0x44}) == 16) {
		return true
	}
	switch string(mac[:min(8, len(mac))]) {
	case "b8:27:eb", "dc:a6:32", "e4:5f:01", "28:cd:c1", "d8:3a:dd", "2c:cf:67", "88:a2:9e":
		return true
	}
	return false
}

// uuid prints option 97 as SMBIOS tools do. All zeros (edk2 without SMBIOS) and
// all ones say nothing.
func uuid(option []byte) string {
	if len(option) != 17 || option[0] != 0 {
		return ""
	}
	u := option[1:]
	if bytes.Count(u, u[:1]) == 16 && (u[0] == 0 || u[0] == 0xff) {
		return ""
	}
	// Its first three parts are in the machine's order (SMBIOS 2.6 §7.2.1).
	le := [16]byte{u[3], u[2], u[1], u[0], u[5], u[4], u[7], u[6]}
	copy(le[8:], u[8:])
	b := make([]byte, 0, 36)
	for i, v := range le {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			b = append(b, '-')
		}
		b = hex.AppendEncode(b, []byte{v})
	}
	return string(b)
}

// hostname keeps only what a host name may hold: it ends in records and on pages.
func hostname(option []byte) string {
	option = bytes.TrimRight(option, "\x00")
	if len(option) == 0 || len(option) > 63 {
		return ""
	}
	for _, c := range option {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '.' {
			return ""
		}
	}
	return string(option)
}

// addr4 converts four bytes; anything else, and 0.0.0.0, is no address.
func addr4(b []byte) netip.Addr {
	ip := net.IP(b).To4()
	if ip == nil {
		return netip.Addr{}
	}
	a := netip.AddrFrom4([4]byte(ip))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// ip4 is the way back, 0.0.0.0 for no address.
func ip4(a netip.Addr) net.IP {
	b := bytes4(a)
	return b[:]
}

func bytes4(a netip.Addr) (b [4]byte) {
	if a.IsValid() {
		b = a.As4()
	}
	return b
}

package inventory

import (
	"net/netip"
	"time"
)

// ObservationKind names one thing a server saw of a machine.
type ObservationKind string

const (
	SawDiscover ObservationKind = "dhcp-discover"
	SawOffer    ObservationKind = "dhcp-offer"
	SawRequest  ObservationKind = "dhcp-request"
	SawAck      ObservationKind = "dhcp-ack"
	SawNak      ObservationKind = "dhcp-nak"
	SawDecline  ObservationKind = "dhcp-decline"
	SawRelease  ObservationKind = "dhcp-release"
	// A request that gets no answer; Error is why.
	SawUnanswered ObservationKind = "dhcp-unanswered"
	// A machine that shall load something and gets no loader; Error is why.
	SawNoLoader ObservationKind = "no-loader"
	SawForeign  ObservationKind = "dhcp-foreign-server" // another DHCP server answered
	SawTFTP     ObservationKind = "tftp-transfer"
	SawScript   ObservationKind = "boot-script"
	SawFile     ObservationKind = "boot-file" // kernel, ramdisk or loader over HTTP
	SawMedium   ObservationKind = "medium"    // its BMC began to read its virtual medium
	SawSyslog   ObservationKind = "log"       // a line of the machine's own; Client says which program's
	SawClaim    ObservationKind = "agent-claim"
	// A TLS handshake with the agent API that came to nothing.
	SawTLS       ObservationKind = "tls-failed"
	SawBadPacket ObservationKind = "bad-packet"
)

// Observation is what a server saw. The engine joins it to a machine by MAC or
// by the lease of the remote address. All of it was said by a stranger: it is
// shown and counted, and permits nothing.
type Observation struct {
	Time    time.Time       `json:"time"`
	Kind    ObservationKind `json:"kind"`
	Network string          `json:"network,omitempty"`
	MAC     MAC             `json:"mac,omitempty"`
	UUID    string          `json:"uuid,omitempty"`
	Remote  netip.Addr      `json:"remote,omitzero"`
	Detail  string          `json:"detail,omitempty"` // file name, reason; never a secret
	Error   string          `json:"error,omitempty"`

	// Of DHCP and scripts: who asks (firmware, http, ipxe, os), the number of its
	// architecture (option 93), and what it says its version is.
	Client  string `json:"client,omitempty"`
	Arch    uint16 `json:"arch,omitempty"`
	Version string `json:"version,omitempty"`
	// V6 is the DHCPv6 message; the kind is the one that it is to DHCPv4.
	V6 string `json:"v6,omitempty"`
	// Of DHCP: the server that answers or that the client chose, whether it is
	// none of ours, and the relay between (giaddr).
	Server  netip.Addr `json:"server,omitzero"`
	Foreign bool       `json:"foreign,omitempty"`
	Relay   netip.Addr `json:"relay,omitzero"`

	// Of a transfer: how many bytes went, of a whole of Size, beginning at Offset;
	// TFTP's block size; how long it took. Over HTTP the last of them may have come
	// no further than our socket's buffer.
	Bytes     int64    `json:"bytes,omitempty"`
	Size      int64    `json:"size,omitempty"`
	Offset    int64    `json:"offset,omitempty"`
	BlockSize int      `json:"blockSize,omitempty"`
	Took      Duration `json:"took,omitempty"`
	// Asked tells that only the size was wanted.
	Asked bool `json:"asked,omitempty"`
}

package dhcp

import (
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"

	"recast/inventory"
	"recast/ipxe"
)

var sawKinds = map[dhcpv4.MessageType]inventory.ObservationKind{
	dhcpv4.MessageTypeDiscover: inventory.SawDiscover,
	dhcpv4.MessageTypeOffer:    inventory.SawOffer,
	dhcpv4.MessageTypeRequest:  inventory.SawRequest,
	dhcpv4.MessageTypeAck:      inventory.SawAck,
	dhcpv4.MessageTypeNak:      inventory.SawNak,
	dhcpv4.MessageTypeDecline:  inventory.SawDecline,
	dhcpv4.MessageTypeRelease:  inventory.SawRelease,
	dhcpv4.MessageTypeInform:   inventory.SawRequest, // for what goes with an address, boot files included
}

// seen is what an observation of a packet says of its sender.
func seen(kind inventory.ObservationKind, r *request, network string) inventory.Observation {
	o := inventory.Observation{Kind: kind, Network: network, MAC: r.mac, UUID: r.client.UUID, Relay: r.giaddr, Client: string(r.client.Loader)}
	if r.six != nil {
		o.V6 = r.six.kind.String()
	}
	if r.client.Loader != ipxe.LoaderOS {
		o.Arch = uint16(r.client.Arch)
	}
	return o
}

// sawAsked tells of a client's packet, before its answer is known: strangers that
// get none are shown too.
func (s *Server) sawAsked(q *question) {
	if q.req.giaddr.IsValid() {
		s.counters.count(&s.counters.s.Relayed, q.network.Name)
	}
	kind, ok := sawKinds[q.req.kind]
	if !ok {
		return
	}
	_, known := q.own()
	o := seen(kind, q.req, q.network.Name)
	o.Remote, o.Detail = q.req.ciaddr, introduce(q.req, known)
	if id := q.req.serverID; id.IsValid() {
		o.Server, o.Foreign = id, !q.isOurs(id)
	}
	if o.Foreign && !o.Remote.IsValid() {
		o.Remote = q.req.requested // what it will speak from
	}
	s.observe(o)
}

// sawAnswered tells of our answer.
func (s *Server) sawAnswered(q *question, out outcome, arrived time.Time) {
	kind, ok := out.seen()
	if !ok {
		return
	}
	o := seen(kind, q.req, q.network.Name)
	o.Remote, o.Server, o.Detail = out.addr(), q.server, out.detail
	o.Took = inventory.Duration(s.now().Sub(arrived))
	if out.six != nil {
		o.V6 = out.six.kind.String()
		if out.six.status != iana.StatusSuccess {
			o.Detail = out.six.status.String()
		}
	}
	s.observe(o)
}

// seen is the observation that stands for a reply; DHCPv6's stand for what they
// are to DHCPv4.
func (o outcome) seen() (kind inventory.ObservationKind, ok bool) {
	switch {
	case o.six == nil:
		kind, ok = sawKinds[o.packet.messageType()]
		return kind, ok
	case o.six.status != iana.StatusSuccess:
		return inventory.SawNak, true
	case o.six.kind == dhcpv6.MessageTypeAdvertise:
		return inventory.SawOffer, true
	}
	return inventory.SawAck, true
}

// bytes of the reply, which there is, in the request's memory.
func (o outcome) bytes(r *request) []byte {
	if o.six != nil {
		return o.six.payload
	}
	r.out = appendPacket(r.out[:0], o.packet)
	return r.out
}

// kind of the reply.
func (o outcome) kind() string {
	if o.six != nil {
		return o.six.kind.String()
	}
	return o.packet.messageType().String()
}

// addr is the address that the reply gives.
func (o outcome) addr() netip.Addr {
	if o.six != nil {
		return o.six.addr
	}
	return addr4(o.packet.YourIPAddr[:])
}

func (r *request) kindText() string {
	if r.six != nil {
		return r.six.kind.String()
	}
	return r.kind.String()
}

// quiet are the silences that are no news of a machine: what ended well, what
// another line says already, and what is not for us.
var quiet = []string{"released", "declined", "another server was chosen", "probe of a peer", silenceIgnored}

// sawSilence tells of a packet that gets no answer.
func (s *Server) sawSilence(r *request, network, why string) {
	if slices.Contains(quiet, why) {
		return
	}
	o := seen(inventory.SawUnanswered, r, network)
	o.Detail, o.Error = r.kindText(), why
	if why == silenceSelected {
		o.Detail += " for " + r.link.String()
	}
	s.observe(o)
}

func introduce(r *request, known bool) string {
	c := r.client
	who := string(c.Loader)
	if r.six == nil && r.kind == dhcpv4.MessageTypeInform {
		who += ", has an address"
	}
	if c.Loader != ipxe.LoaderOS {
		who += ", architecture " + strconv.Itoa(int(c.Arch))
	}
	if !known {
		who += ", undeclared"
	}
	if r.port.Circuit != "" {
		who += ", at port " + r.port.String()
	}
	return who
}

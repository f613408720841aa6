package dhcp

import (
	"fmt"
	"slices"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

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
}

// seen is what an observation of a packet says of its sender.
func seen(kind inventory.ObservationKind, r *request, network string) inventory.Observation {
	o := inventory.Observation{Kind: kind, Network: network, MAC: r.mac, UUID: r.client.UUID, Relay: r.giaddr, Client: string(r.client.Loader)}
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
	s.observe(o)
}

// sawAnswered tells of our answer.
func (s *Server) sawAnswered(q *question, out outcome, arrived time.Time) {
	kind, ok := sawKinds[out.packet.MessageType()]
	if !ok {
		return
	}
	o := seen(kind, q.req, q.network.Name)
	o.Remote, o.Server, o.Detail = addr4(out.packet.YourIPAddr), q.server, out.detail
	o.Took = inventory.Duration(s.now().Sub(arrived))
	s.observe(o)
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
	o.Detail, o.Error = r.kind.String(), why
	s.observe(o)
}

func introduce(r *request, known bool) string {
	c := r.client
	who := string(c.Loader)
	if c.Loader != ipxe.LoaderOS {
		who = fmt.Sprintf("%s, architecture %d", c.Loader, uint16(c.Arch))
	}
	if !known {
		who += ", undeclared"
	}
	if r.port.Circuit != "" {
		who += ", at port " + r.port.String()
	}
	return who
}

package testenv

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Cable is how a machine of a rack hangs on its network. The zero value is a good one.
type Cable struct {
	Impairment // each way
	// VLAN is the one that the switch port behind it carries, with its tag alone; 0 for
	// none, frames without a tag.
	VLAN uint16
}

func (c Cable) good() bool {
	c.Seed = 0
	return c == Cable{}
}

// Link is a Switch of two ports between an interface of a Net and its bridge. Each
// direction has the impairment once.
//
// Duties of the caller: Close it, which puts the interface back, before the Net.
type Link struct {
	net           *Net
	iface, bridge string
	sw            Switch
	near, far     *SwitchPort // to the interface, to the bridge
}

// NewLink takes an interface from its bridge, and puts a good link between them.
func (n *Net) NewLink(iface, bridge string) (l *Link, err error) {
	l = &Link{net: n, iface: iface, bridge: bridge}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("put a link behind %s: %w", iface, err), l.Close())
		}
	}()
	// A segment for the interface and our port: a tap of QEMU's is no other program's.
	if err := n.ip("link add b-"+iface+" type bridge forward_delay 0", "link set b-"+iface+" up"); err != nil {
		return l, err
	}
	for _, end := range []struct {
		name, bridge string
		port         **SwitchPort
	}{{"n-" + iface, "b-" + iface, &l.near}, {"f-" + iface, bridge, &l.far}} {
		if err := n.Do(func() error {
			tap, err := NewTap(end.name)
			if err == nil {
				*end.port = l.sw.Plug(tap, PortConfig{Access: 1})
			}
			return err
		}); err != nil {
			return l, err
		}
		if err := n.ip("link set " + end.name + " master " + end.bridge + " up"); err != nil {
			return l, err
		}
	}
	return l, n.ip("link set " + iface + " master b-" + iface)
}

// Set changes the whole link.
func (l *Link) Set(c Cable) {
	near, far := PortConfig{Access: 1, Impairment: c.Impairment}, PortConfig{Access: cmp.Or(c.VLAN, 1), Impairment: c.Impairment}
	if c.VLAN != 0 {
		near.Access, near.Trunk = 0, []uint16{c.VLAN}
	}
	far.Seed = ^c.Seed // not the same fate for question and answer
	l.near.Set(near)
	l.far.Set(far)
}

// SetFlow changes it for the frames that name one of these addresses alone. They have
// no tags, so that a VLAN lets none of them through.
func (l *Link) SetFlow(keys []flowKey, c Cable) {
	if c.VLAN != 0 {
		c.Loss = 1
	}
	far := c.Impairment
	far.Seed = ^c.Seed
	l.near.SetFlow(keys, c.Impairment)
	l.far.SetFlow(keys, far)
}

// EndFlow ends what SetFlow began.
func (l *Link) EndFlow(keys []flowKey) {
	l.near.EndFlow(keys)
	l.far.EndFlow(keys)
}

// Count is of both directions.
func (l *Link) Count(keys ...flowKey) FrameCount {
	return l.near.Count(keys...).add(l.far.Count(keys...))
}

func (c FrameCount) add(o FrameCount) FrameCount {
	return FrameCount{c.Frames + o.Frames, c.Lost + o.Lost, c.Twice + o.Twice, c.Late + o.Late}
}

// Close puts the interface back on its bridge.
func (l *Link) Close() error {
	return errors.Join(l.net.ip("link set "+l.iface+" master "+l.bridge), l.sw.Close(), l.net.ip("link delete b-"+l.iface))
}

// simLeg is the interface that all simulated machines of a rack hang on.
const simLeg = simHost + "-0"

// setCable makes this the cable of a machine, of all its cards.
func (r *Rack) setCable(m *rackMember, c Cable) error {
	m.cable = c
	if !c.good() { // each machine's frames meet a fate of their own
		ip := m.ip.As4()
		c.Seed = uint64(binary.BigEndian.Uint32(ip[:]))
	}
	if m.simulated != nil {
		return r.setSimCable(m, c)
	}
	var errs []error
	for i, nic := range m.qemu.NICs {
		l := r.links[nic.Tap]
		if c.good() {
			if l != nil {
				delete(r.links, nic.Tap)
				errs = append(errs, l.Close())
			}
			continue
		}
		if l == nil {
			bridge := NetBridge
			if i < len(m.spec.NICs) {
				bridge = cmp.Or(m.spec.NICs[i].Segment, NetBridge)
			}
			var err error
			if l, err = r.newLink(nic.Tap, bridge); err != nil {
				return errors.Join(append(errs, err)...)
			}
		}
		l.Set(c)
	}
	return errors.Join(errs...)
}

func (r *Rack) newLink(iface, bridge string) (*Link, error) {
	l, err := r.Net.NewLink(iface, bridge)
	if err != nil {
		return nil, err
	}
	if r.links == nil {
		r.links = map[string]*Link{}
	}
	r.links[iface] = l
	return l, nil
}

// setSimCable: they share one link, which is there while one of them needs it.
func (r *Rack) setSimCable(m *rackMember, c Cable) error {
	l, keys := r.links[simLeg], m.flowKeys()
	if !c.good() {
		if l == nil {
			var err error
			if l, err = r.newLink(simLeg, NetBridge); err != nil {
				return err
			}
		}
		l.SetFlow(keys, c)
		return nil
	}
	if l == nil {
		return nil
	}
	l.EndFlow(keys)
	if slices.ContainsFunc(r.members, func(o rackMember) bool { return o.simulated != nil && !o.cable.good() }) {
		return nil
	}
	delete(r.links, simLeg)
	return l.Close()
}

func (m *rackMember) flowKeys() []flowKey {
	return []flowKey{{ip: m.ip}, {hw: simHardwareAddr(m.mac)}}
}

// CableCount is what became of the frames of a machine since its cable is a bad one;
// ok is false while it is a good one.
func (r *Rack) CableCount(name string) (sum FrameCount, ok bool) {
	m, err := r.member(name)
	if err != nil || m.cable.good() {
		return sum, false
	}
	if m.simulated != nil {
		return r.links[simLeg].Count(m.flowKeys()...), true
	}
	for _, nic := range m.qemu.NICs {
		sum = sum.add(r.links[nic.Tap].Count())
	}
	return sum, true
}

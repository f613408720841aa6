package inventory

import (
	"net/netip"
	"sort"
)

// Set is one validated snapshot of all declared objects. It is replaced whole
// and never edited; every pointer it returns is shared and must not be written
// through. Only Parse and Decode make one, so its references resolve.
type Set struct {
	Networks    []*Network    `json:"networks"`
	Images      []*Image      `json:"images"`
	Definitions []*Definition `json:"definitions"`
	Groups      []*Group      `json:"groups"`
	Machines    []*Machine    `json:"machines"`

	network    map[string]*Network
	image      map[string]*Image
	definition map[string]*Definition
	group      map[string]*Group
	machine    map[string]*Machine
	byMAC      map[MAC]*Machine
	byAddr     map[netip.Addr]*Machine
	groupOf    map[string]*Group
}

// index sorts the objects by name and builds the look-ups. It expects a valid set.
func (s *Set) index() {
	sort.Slice(s.Networks, func(i, j int) bool { return s.Networks[i].Name < s.Networks[j].Name })
	sort.Slice(s.Images, func(i, j int) bool { return s.Images[i].Name < s.Images[j].Name })
	sort.Slice(s.Definitions, func(i, j int) bool { return s.Definitions[i].Name < s.Definitions[j].Name })
	sort.Slice(s.Groups, func(i, j int) bool { return s.Groups[i].Name < s.Groups[j].Name })
	sort.Slice(s.Machines, func(i, j int) bool { return s.Machines[i].Name < s.Machines[j].Name })
	s.network = byName(s.Networks, func(o *Network) string { return o.Name })
	s.image = byName(s.Images, func(o *Image) string { return o.Name })
	s.definition = byName(s.Definitions, func(o *Definition) string { return o.Name })
	s.group = byName(s.Groups, func(o *Group) string { return o.Name })
	s.machine = byName(s.Machines, func(o *Machine) string { return o.Name })
	s.byMAC = make(map[MAC]*Machine, len(s.Machines))
	s.byAddr = make(map[netip.Addr]*Machine, len(s.Machines))
	s.groupOf = make(map[string]*Group, len(s.Machines))
	for _, m := range s.Machines {
		for _, n := range m.NICs {
			s.byMAC[n.MAC] = m
			if n.IP.IsValid() {
				s.byAddr[n.IP] = m
			}
		}
		for _, g := range s.Groups {
			if g.Selects(m) {
				s.groupOf[m.Name] = g
				break
			}
		}
	}
}

func byName[T any](objects []*T, name func(*T) string) map[string]*T {
	m := make(map[string]*T, len(objects))
	for _, o := range objects {
		m[name(o)] = o
	}
	return m
}

// EmptySet declares nothing.
func EmptySet() *Set {
	s := &Set{}
	s.index()
	return s
}

// Each look-up returns nil where there is no such object.

func (s *Set) Network(name string) *Network       { return s.network[name] }
func (s *Set) Image(name string) *Image           { return s.image[name] }
func (s *Set) Definition(name string) *Definition { return s.definition[name] }
func (s *Set) Group(name string) *Group           { return s.group[name] }
func (s *Set) Machine(name string) *Machine       { return s.machine[name] }

// MachineByMAC finds the machine that declares the hardware address.
func (s *Set) MachineByMAC(mac MAC) *Machine { return s.byMAC[mac] }

// MachineByAddr finds the machine that reserves the address.
func (s *Set) MachineByAddr(a netip.Addr) *Machine { return s.byAddr[a] }

// GroupOf is the one Group that selects the machine, or nil.
func (s *Set) GroupOf(machine string) *Group { return s.groupOf[machine] }

// NetworkOf finds the Network whose subnet holds the address, or nil.
func (s *Set) NetworkOf(a netip.Addr) *Network {
	for _, n := range s.Networks {
		if n.Subnet.Contains(a) {
			return n
		}
	}
	return nil
}

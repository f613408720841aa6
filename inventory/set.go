package inventory

import (
	"net/netip"
	"sort"
)

// Set is one validated snapshot of all declared objects. It is replaced whole
// and never edited; every pointer it returns is shared and must not be written
// through. Only Parse, DecodeSet and EmptySet make one, so its references resolve.
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
	byPort     map[portOn]*Machine
	groupOf    map[string]*Group
	bySubnet   []*Network            // by first address
	selectors  map[string]selections // key of a Group's selector → value → Groups
	refs       []SecretRef           // nil unless Parse made the set, as the two below
	reservedAt map[netip.Addr]spot
	configAt   map[string]spot // by Definition
}

type selections map[string][]*Group

// index sorts the objects by name and builds the look-ups. It expects a valid set.
func (s *Set) index() {
	// An empty list has one spelling in the canonical form.
	if s.Networks == nil {
		s.Networks = []*Network{}
	}
	if s.Images == nil {
		s.Images = []*Image{}
	}
	if s.Definitions == nil {
		s.Definitions = []*Definition{}
	}
	if s.Groups == nil {
		s.Groups = []*Group{}
	}
	if s.Machines == nil {
		s.Machines = []*Machine{}
	}
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
	s.byPort = map[portOn]*Machine{}
	s.groupOf = make(map[string]*Group, len(s.Machines))
	s.bySubnet = append([]*Network(nil), s.Networks...)
	sort.Slice(s.bySubnet, func(i, j int) bool { return s.bySubnet[i].Subnet.Addr().Less(s.bySubnet[j].Subnet.Addr()) })
	s.indexGroups()
	for _, m := range s.Machines {
		for _, n := range m.NICs {
			switch {
			case n.MAC != "":
				s.byMAC[n.MAC] = m
			case n.Port != nil:
				s.byPort[portOn{n.Network, *n.Port}] = m
			}
			for _, a := range []netip.Addr{n.IP, n.IP6} {
				if a.IsValid() {
					s.byAddr[a] = m
				}
			}
		}
		if groups := s.groupsOf(m); len(groups) > 0 {
			s.groupOf[m.Name] = groups[0]
		}
	}
}

// indexGroups files each Group under one part of its selector, so that a
// machine is compared with the few that may select it and not with all.
func (s *Set) indexGroups() {
	s.selectors = map[string]selections{}
	for _, g := range s.Groups {
		first := ""
		for key := range g.Select {
			if first == "" || key < first {
				first = key
			}
		}
		if s.selectors[first] == nil {
			s.selectors[first] = selections{}
		}
		s.selectors[first][g.Select[first]] = append(s.selectors[first][g.Select[first]], g)
	}
}

// groupsOf are all Groups that select the machine, by name; a valid set has at
// most one.
func (s *Set) groupsOf(m *Machine) (groups []*Group) {
	for key, byValue := range s.selectors {
		for _, g := range byValue[m.Field(key)] {
			if g.Selects(m) {
				groups = append(groups, g)
			}
		}
	}
	if len(groups) > 1 {
		sort.Slice(groups, func(i, j int) bool { return groups[i].Name < groups[j].Name })
	}
	return groups
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
	// Subnets do not overlap, so only the last one that begins at or before a can.
	i := sort.Search(len(s.bySubnet), func(i int) bool { return a.Less(s.bySubnet[i].Subnet.Addr()) })
	if i > 0 && s.bySubnet[i-1].Subnet.Contains(a) {
		return s.bySubnet[i-1]
	}
	return nil
}

package testenv

import (
	"cmp"
	"strconv"

	"recast/inventory"
)

// RedfishHardware is what a BMC knows of the machine, for who takes an inventory.
type RedfishHardware struct {
	MACs      []string
	Cores     int // of one processor; 0: it tells of none
	MemoryMiB int
	Disks     []inventory.DiskID
	// SecureBoot of the present start, Enabled or Disabled; "" without UEFI.
	SecureBoot string
}

// hardware adds to a system what is known of it, which is of the first one only.
func (s *redfishSystem) hardware(fields map[string]any) {
	h := s.known()
	if len(h.MACs) > 0 {
		fields["EthernetInterfaces"] = redfishID(s.path() + "/EthernetInterfaces")
	}
	if len(h.Disks) > 0 {
		fields["Storage"] = redfishID(s.path() + "/Storage")
	}
	if h.SecureBoot != "" {
		fields["SecureBoot"] = redfishID(s.path() + "/SecureBoot")
	}
	if h.Cores > 0 {
		fields["Processors"] = redfishID(s.path() + "/Processors")
		fields["ProcessorSummary"] = map[string]any{"Count": 1, "CoreCount": h.Cores}
	}
	if h.MemoryMiB > 0 {
		fields["MemorySummary"] = map[string]any{"TotalSystemMemoryGiB": float64(h.MemoryMiB) / 1024}
	}
}

func (s *redfishSystem) known() RedfishHardware {
	if s != s.bmc.systems[0] {
		return RedfishHardware{}
	}
	return s.bmc.options.Hardware
}

// list is a collection of things that are numbered from 0, below a system, and one
// of them where an id is given.
func (b *RedfishBMC) list(ids []string, below, kind string, count func(RedfishHardware) int, one func(s *redfishSystem, path, id string, i int) map[string]any) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || count(s.known()) == 0 {
		return nil
	}
	path := s.path() + "/" + below
	if len(ids) == 1 {
		return &redfishResource{get: func() map[string]any {
			var members []string
			for i := range count(s.known()) {
				members = append(members, path+"/"+strconv.Itoa(i))
			}
			return redfishCollection(path, kind, members)
		}}
	}
	i, err := strconv.Atoi(ids[1])
	if err != nil || i < 0 || i >= count(s.known()) || strconv.Itoa(i) != ids[1] {
		return nil
	}
	return &redfishResource{get: func() map[string]any { return one(s, path+"/"+ids[1], ids[1], i) }}
}

func (b *RedfishBMC) ethernetAt(ids []string) *redfishResource {
	return b.list(ids, "EthernetInterfaces", "EthernetInterface", func(h RedfishHardware) int { return len(h.MACs) },
		func(s *redfishSystem, path, id string, i int) map[string]any {
			mac := s.known().MACs[i]
			return redfishNew(path, "#EthernetInterface.v1_12_5.EthernetInterface", id, "Network interface "+id, map[string]any{
				"MACAddress": mac, "PermanentMACAddress": mac, "InterfaceEnabled": true, "LinkStatus": redfishEither(s.machine.Powered(), "LinkUp", "LinkDown"), "Status": redfishHealthy(),
			})
		})
}

func (b *RedfishBMC) processorAt(ids []string) *redfishResource {
	return b.list(ids, "Processors", "Processor", func(h RedfishHardware) int { return min(h.Cores, 1) },
		func(s *redfishSystem, path, id string, i int) map[string]any {
			return redfishNew(path, "#Processor.v1_23_0.Processor", id, "Processor "+id, map[string]any{
				"ProcessorType": "CPU", "Socket": "CPU" + id, "Manufacturer": b.options.Manufacturer, "Model": "virtual processor",
				"TotalCores": s.known().Cores, "TotalThreads": s.known().Cores, "Status": redfishHealthy(),
			})
		})
}

// storageAt is the one controller, with every disk.
func (b *RedfishBMC) storageAt(ids []string) *redfishResource {
	return b.list(ids, "Storage", "Storage", func(h RedfishHardware) int { return min(len(h.Disks), 1) },
		func(s *redfishSystem, path, id string, i int) map[string]any {
			drives := make([]any, len(s.known().Disks))
			for i := range drives {
				drives[i] = redfishID(path + "/Drives/" + strconv.Itoa(i))
			}
			return redfishNew(path, "#Storage.v1_22_0.Storage", id, "Storage "+id, map[string]any{"Drives": drives, "Status": redfishHealthy()})
		})
}

func (b *RedfishBMC) driveAt(ids []string) *redfishResource {
	return b.list(ids, "Storage/0/Drives", "Drive", func(h RedfishHardware) int { return len(h.Disks) },
		func(s *redfishSystem, path, id string, i int) map[string]any {
			disk := s.known().Disks[i]
			fields := map[string]any{"CapacityBytes": disk.Size, "MediaType": "SSD", "Protocol": "SATA", "Status": redfishHealthy()}
			if disk.Serial != "" {
				fields["SerialNumber"] = disk.Serial
			}
			return redfishNew(path, "#Drive.v1_22_0.Drive", id, "Drive "+id, fields)
		})
}

// secureBootAt is what the firmware says of its keys. It can be read only: they are put
// in when the machine is made.
func (b *RedfishBMC) secureBootAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || s.known().SecureBoot == "" {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		now := s.known().SecureBoot
		return redfishNew(s.path()+"/SecureBoot", "#SecureBoot.v1_1_2.SecureBoot", "SecureBoot", "UEFI Secure Boot", map[string]any{
			"SecureBootEnable": now == "Enabled", "SecureBootCurrentBoot": now, "SecureBootMode": redfishEither(now == "Enabled", "UserMode", "SetupMode"),
		})
	}}
}

// redfishSecureBoot in Redfish's words.
func redfishSecureBoot(uefi, on bool) string {
	if !uefi {
		return ""
	}
	return redfishEither(on, "Enabled", "Disabled")
}

// redfishHardwareOf a QEMU machine.
func redfishHardwareOf(m *QEMU) RedfishHardware {
	h := RedfishHardware{Cores: max(m.CPUs, 1), MemoryMiB: cmp.Or(m.MemoryMB, 1024), SecureBoot: redfishSecureBoot(m.UEFI(), m.SecureBoot)}
	for _, n := range m.NICs {
		h.MACs = append(h.MACs, n.MAC)
	}
	for _, d := range m.Disks {
		h.Disks = append(h.Disks, inventory.DiskID{Serial: d.Serial, Size: d.Size})
	}
	return h
}

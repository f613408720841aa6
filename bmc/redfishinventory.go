package bmc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
)

const (
	// inventoryMost bounds what is read of one collection, inventoryHoles what is
	// told of what could not be.
	inventoryMost  = 256
	inventoryHoles = 20
)

// Inventory reads resource by resource, each as a call of its own: on a BMC that
// takes a second for each it lasts minutes, and power does not wait that long.
func (s *session) Inventory(ctx context.Context) (all Inventory, err error) {
	all.Identity, err = s.Identity(ctx)
	if err != nil {
		return all, err
	}
	d, err := s.redfish("read inventory")
	if err != nil {
		all.Holes = []string{"processors, memory, disks, interfaces and firmware: IPMI does not tell them"}
		return all, nil
	}
	w := &inventoryWalk{session: s, driver: d, all: &all}
	w.system(ctx)
	return all, w.err
}

// inventoryWalk reads on past holes; err is what ends it.
type inventoryWalk struct {
	session *session
	driver  *redfishDriver
	all     *Inventory
	err     error
	failed  error // the latest hole
}

// hole notes what could not be read, and whether there is a point in going on.
func (w *inventoryWalk) hole(ctx context.Context, uri string, err error) {
	if err == nil {
		return
	}
	w.failed = err
	switch {
	case ctx.Err() != nil, final(err), errors.Is(err, ErrUnreachable), errors.Is(err, errClosed):
		w.err = err
	}
	switch n := len(w.all.Holes); {
	case n < inventoryHoles:
		w.all.Holes = append(w.all.Holes, uri+": "+oneLine(err))
	case n == inventoryHoles:
		w.all.Holes = append(w.all.Holes, "and more")
	}
}

func (w *inventoryWalk) read(ctx context.Context, uri string, v any) bool {
	if w.err != nil {
		return false
	}
	err := w.session.call(ctx, "read inventory", func(ctx context.Context) error {
		return w.driver.again(ctx, func() error {
			_, err := w.driver.get(ctx, uri, v)
			return err
		})
	})
	w.hole(ctx, uri, err)
	return err == nil
}

// each reads the members of a collection into fresh values of the same kind.
func each[T any](ctx context.Context, w *inventoryWalk, at redfishLink, take func(T)) {
	if at.ID == "" || w.err != nil {
		return
	}
	var uris []string
	err := w.session.call(ctx, "read inventory", func(ctx context.Context) error {
		return w.driver.again(ctx, func() (err error) {
			uris, err = w.driver.collection(ctx, at.ID)
			return err
		})
	})
	w.hole(ctx, at.ID, err)
	if len(uris) > inventoryMost {
		w.hole(ctx, at.ID, fmt.Errorf("%d members, only %d are read", len(uris), inventoryMost))
		uris = uris[:inventoryMost]
	}
	for _, uri := range uris {
		var v T
		if w.read(ctx, uri, &v) {
			take(v)
		}
	}
}

// redfishStatus of a part; a slot without one is "Absent", and many leave it out.
type redfishStatus struct {
	State  text `json:"State"`
	Health text `json:"Health"`
}

func (s redfishStatus) absent() bool { return s.State == "Absent" }

func (w *inventoryWalk) system(ctx context.Context) {
	var system redfishOwner
	if !w.read(ctx, w.driver.transport.system, &system) {
		return
	}
	each(ctx, w, system.Processors, func(p struct {
		Slot    text          `json:"Socket"`
		ID      text          `json:"Id"`
		Maker   text          `json:"Manufacturer"`
		Model   text          `json:"Model"`
		Cores   number        `json:"TotalCores"`
		Threads number        `json:"TotalThreads"`
		Type    text          `json:"ProcessorType"`
		Status  redfishStatus `json:"Status"`
	}) {
		if p.Status.absent() || p.Type != "" && p.Type != "CPU" {
			return
		}
		w.all.Processors = append(w.all.Processors, Processor{Slot: either(p.Slot, p.ID), Manufacturer: string(p.Maker),
			Model: string(p.Model), Cores: int(p.Cores.whole()), Threads: int(p.Threads.whole())})
	})
	each(ctx, w, system.Memory, func(m struct {
		Slot   text          `json:"DeviceLocator"`
		ID     text          `json:"Id"`
		Type   text          `json:"MemoryDeviceType"`
		MiB    number        `json:"CapacityMiB"`
		MHz    number        `json:"OperatingSpeedMhz"`
		Maker  text          `json:"Manufacturer"`
		Part   text          `json:"PartNumber"`
		Serial text          `json:"SerialNumber"`
		Status redfishStatus `json:"Status"`
	}) {
		if m.Status.absent() || m.MiB == 0 && m.Serial == "" { // an empty slot
			return
		}
		w.all.Memory = append(w.all.Memory, Module{Slot: either(m.Slot, m.ID), Type: string(m.Type), MiB: m.MiB.whole(),
			MHz: int(m.MHz.whole()), Manufacturer: string(m.Maker), Part: string(m.Part), Serial: string(m.Serial)})
	})
	w.disks(ctx, system)
	w.secureBoot(ctx, system.Secure)
	each(ctx, w, system.NICs, func(n struct {
		ID     text          `json:"Id"`
		MAC    text          `json:"MACAddress"`
		Burnt  text          `json:"PermanentMACAddress"`
		Link   text          `json:"LinkStatus"`
		Mbps   number        `json:"SpeedMbps"`
		Status redfishStatus `json:"Status"`
	}) {
		if n.Status.absent() {
			return
		}
		w.all.NICs = append(w.all.NICs, NIC{Name: string(n.ID), MAC: plainMAC(either(n.Burnt, n.MAC)), Link: string(n.Link), Mbps: int(n.Mbps.whole())})
	})
	var service redfishService
	var updates struct {
		Inventory redfishLink `json:"FirmwareInventory"`
	}
	if w.read(ctx, "/redfish/v1/", &service) && service.Updates.ID != "" && w.read(ctx, service.Updates.ID, &updates) {
		each(ctx, w, updates.Inventory, func(f struct {
			Name    text `json:"Name"`
			ID      text `json:"Id"`
			Version text `json:"Version"`
		}) {
			w.all.Firmware = append(w.all.Firmware, Firmware{Name: either(f.Name, f.ID), Version: string(f.Version), State: firmwareState(string(f.ID))})
		})
	}
}

// disks come from Storage, with a resource each, or from the older SimpleStorage
// where there is none.
func (w *inventoryWalk) secureBoot(ctx context.Context, at redfishLink) {
	var s struct {
		Enable  text `json:"SecureBootEnable"`
		Current text `json:"SecureBootCurrentBoot"`
	}
	if uri := w.driver.local(at.ID); uri == "" || !w.read(ctx, uri, &s) {
		return
	}
	words := map[text]string{"Enabled": "on", "Disabled": "off", "true": "on", "false": "off"}
	now, next := words[s.Current], words[s.Enable]
	if w.all.SecureBoot = cmp.Or(now, next); now != "" && next != "" && now != next {
		w.all.SecureBoot += ", " + next + " from the next start"
	}
}

func (w *inventoryWalk) disks(ctx context.Context, system redfishOwner) {
	type drive struct {
		Name     text          `json:"Name"`
		ID       text          `json:"Id"`
		Maker    text          `json:"Manufacturer"`
		Model    text          `json:"Model"`
		Serial   text          `json:"SerialNumber"`
		Protocol text          `json:"Protocol"`
		Media    text          `json:"MediaType"`
		Bytes    number        `json:"CapacityBytes"`
		Status   redfishStatus `json:"Status"`
	}
	add := func(d drive, controller text) {
		if !d.Status.absent() {
			w.all.Disks = append(w.all.Disks, Disk{Name: either(d.Name, d.ID), Controller: string(controller), Manufacturer: string(d.Maker),
				Model: string(d.Model), Serial: string(d.Serial), Protocol: string(d.Protocol), Media: string(d.Media),
				Bytes: d.Bytes.whole(), Health: string(d.Status.Health)})
		}
	}
	each(ctx, w, system.Storage, func(s struct {
		Name   text          `json:"Name"`
		ID     text          `json:"Id"`
		Drives []redfishLink `json:"Drives"`
	}) {
		for _, link := range s.Drives[:min(len(s.Drives), inventoryMost)] {
			var d drive
			if uri := w.driver.local(link.ID); uri != "" && w.read(ctx, uri, &d) {
				add(d, text(either(s.Name, s.ID)))
			}
		}
	})
	if len(w.all.Disks) > 0 {
		return
	}
	each(ctx, w, system.Simple, func(s struct {
		Name    text    `json:"Name"`
		ID      text    `json:"Id"`
		Devices []drive `json:"Devices"`
	}) {
		for _, d := range s.Devices {
			add(d, text(either(s.Name, s.ID)))
		}
	})
}

// firmwareState reads it off the id: iDRAC lists what it could go back to beside what is
// installed, by the same name.
func firmwareState(id string) string {
	for _, state := range []string{"previous", "available"} {
		if strings.HasPrefix(strings.ToLower(id), state+"-") {
			return state
		}
	}
	return ""
}

func either(a, b text) string {
	if a != "" {
		return string(a)
	}
	return string(b)
}

// plainMAC writes an address as Linux does, whatever a BMC puts between its digits.
func plainMAC(s string) string {
	plain := strings.ToLower(strings.NewReplacer(":", "", "-", "", ".", "", " ", "").Replace(s))
	if len(plain) != 12 || strings.Trim(plain, "0123456789abcdef") != "" {
		return s
	}
	var parts []string
	for i := 0; i < 12; i += 2 {
		parts = append(parts, plain[i:i+2])
	}
	return strings.Join(parts, ":")
}

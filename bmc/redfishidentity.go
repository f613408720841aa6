package bmc

import (
	"cmp"
	"context"
	"slices"
	"strings"
)

// redfishService is the part of the service root that is read (DSP0266, 8.2).
type redfishService struct {
	UUID    text        `json:"UUID"`
	Vendor  text        `json:"Vendor"`
	Product text        `json:"Product"`
	Updates redfishLink `json:"UpdateService"`
}

// redfishOwner is a System or a Manager, with the links between them.
type redfishOwner struct {
	Media        redfishLink  `json:"VirtualMedia"`
	Logs         redfishLink  `json:"LogServices"`
	UUID         text         `json:"UUID"`
	Manufacturer text         `json:"Manufacturer"`
	Model        text         `json:"Model"`
	Links        redfishLinks `json:"Links"`
	// of a System
	Serial     text        `json:"SerialNumber"`
	SKU        text        `json:"SKU"`
	Part       text        `json:"PartNumber"`
	BIOS       text        `json:"BiosVersion"`
	Processors redfishLink `json:"Processors"`
	Memory     redfishLink `json:"Memory"`
	Storage    redfishLink `json:"Storage"`
	Simple     redfishLink `json:"SimpleStorage"`
	NICs       redfishLink `json:"EthernetInterfaces"`
	Secure     redfishLink `json:"SecureBoot"`
	// of a Manager
	Firmware text `json:"FirmwareVersion"`
}

type redfishLinks struct {
	ManagedBy []redfishLink `json:"ManagedBy"`
	Servers   []redfishLink `json:"ManagerForServers"`
}

// owners reads the system and its managers. Where the system does not name them
// (Huawei 1288H), those that name the system are taken, or the only one.
func (d *redfishDriver) owners(ctx context.Context) (system redfishOwner, managers []redfishOwner, err error) {
	uri := d.transport.system
	if _, err := d.get(ctx, uri, &system); err != nil {
		return system, nil, err
	}
	d.facts.of(string(system.Manufacturer), string(system.Model), "")
	named := len(system.Links.ManagedBy) > 0
	var uris []string
	for _, l := range system.Links.ManagedBy {
		if at := d.local(l.ID); at != "" {
			uris = append(uris, at)
		}
	}
	if !named {
		if uris, err = d.members(ctx, "/redfish/v1/Managers"); err != nil {
			return system, nil, err
		}
	}
	for _, at := range uris {
		var m redfishOwner
		if _, err := d.get(ctx, at, &m); gone(err) {
			continue
		} else if err != nil {
			return system, nil, err
		}
		ours := named || len(uris) == 1 || slices.ContainsFunc(m.Links.Servers, func(l redfishLink) bool {
			return strings.TrimSuffix(l.ID, "/") == strings.TrimSuffix(uri, "/")
		})
		if ours {
			managers = append(managers, m)
		}
	}
	return system, managers, nil
}

// identity takes the system's word, and the service's and the manager's for the BMC.
func (d *redfishDriver) identity(ctx context.Context) (id Identity, err error) {
	err = d.again(ctx, func() error {
		id, err = d.readIdentity(ctx)
		return err
	})
	return id, err
}

func (d *redfishDriver) readIdentity(ctx context.Context) (id Identity, err error) {
	var service redfishService
	if _, err := d.get(ctx, "/redfish/v1/", &service); err != nil {
		return id, err
	}
	system, managers, err := d.owners(ctx)
	if err != nil {
		return id, err
	}
	id = Identity{
		UUID: plainUUID(system.UUID), Serial: string(system.Serial),
		Manufacturer: string(system.Manufacturer), Model: string(system.Model),
		Part: string(cmp.Or(system.SKU, system.Part)), BIOS: string(system.BIOS),
		BMC: BMCIdentity{
			UUID: plainUUID(service.UUID), Vendor: string(cmp.Or(service.Vendor, system.Manufacturer)),
			Model: string(service.Product),
		},
	}
	if quirksOf(id.Manufacturer, id.Model, "").tag && system.SKU != "" {
		id.Serial, id.Board, id.Part = string(system.SKU), string(system.Serial), string(system.Part)
	}
	for _, m := range managers {
		if m.Firmware == "" {
			continue // an enclosure's, or one that is updating
		}
		id.BMC.Firmware, id.BMC.Model = string(m.Firmware), string(cmp.Or(m.Model, service.Product))
		id.BMC.UUID = cmp.Or(id.BMC.UUID, plainUUID(m.UUID))
		break
	}
	d.facts.of(id.Manufacturer, id.Model, id.BMC.Firmware)
	return id, nil
}

// plainUUID is in lower case; one of zeros or of ones was never set.
func plainUUID(t text) string {
	uuid := strings.ToLower(string(t))
	if strings.Trim(uuid, "0-") == "" || strings.Trim(uuid, "f-") == "" {
		return ""
	}
	return uuid
}

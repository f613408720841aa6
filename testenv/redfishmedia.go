package testenv

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// redfishDrive is a virtual drive of one system. The first one of a machine is
// really there, when the machine has one (MediaDrive). Guarded by
// RedfishBMC.stateMu.
type redfishDrive struct {
	system *redfishSystem
	id     string
	types  []string
	real   bool

	image, protocol, user string
	writable              bool
	medium                *httpMedium // nil: empty
	ejected               time.Time
	was                   redfishDriveWords // before it was ejected
}

// redfishDriveWords is what a drive tells of its medium.
type redfishDriveWords struct {
	image, protocol, user string
	inserted              bool
}

// ejectAll takes out what a BMC that ends has put in: it reads it no more.
func (b *RedfishBMC) ejectAll() {
	for _, d := range b.allDrives() {
		if d.real {
			_ = d.system.machine.(MediaDrive).EjectMedium(context.Background())
		}
	}
}

// addDrives gives a system its drives: a CD, and a second one where asked for.
func (s *redfishSystem) addDrives() {
	if _, ok := s.machine.(MediaDrive); !ok || !slices.Contains(s.devices, BootCD) {
		return
	}
	for i, id := range s.bmc.options.Drives {
		if len(s.bmc.systems) > 1 && !s.bmc.options.MediaUnderSystem {
			id = s.id + "-" + id // a manager's drives stand side by side
		}
		s.drives = append(s.drives, &redfishDrive{system: s, id: id, types: []string{"CD", "DVD"}, real: i == 0})
	}
}

// drives of the manager.
func (b *RedfishBMC) allDrives() []*redfishDrive {
	var drives []*redfishDrive
	for _, s := range b.systems {
		drives = append(drives, s.drives...)
	}
	return drives
}

func (d *redfishDrive) path() string {
	if d.system.bmc.options.MediaUnderSystem {
		return d.system.path() + "/VirtualMedia/" + d.id
	}
	return redfishManager + "/VirtualMedia/" + d.id
}

func redfishDriveCollection(base string, drives []*redfishDrive) *redfishResource {
	if len(drives) == 0 {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		var members []string
		for _, d := range drives {
			members = append(members, d.path())
		}
		return redfishCollection(base+"/VirtualMedia", "VirtualMedia", members)
	}}
}

func (b *RedfishBMC) managerMediaCollection([]string) *redfishResource {
	if b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveCollection(redfishManager, b.allDrives())
}

func (b *RedfishBMC) systemMediaCollection(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || !b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveCollection(s.path(), s.drives)
}

func redfishDriveNamed(drives []*redfishDrive, id string) *redfishDrive {
	i := slices.IndexFunc(drives, func(d *redfishDrive) bool { return d.id == id })
	if i < 0 {
		return nil
	}
	return drives[i]
}

func (b *RedfishBMC) managerMediaAt(ids []string) *redfishResource {
	if b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveNamed(b.allDrives(), ids[0]).at()
}

func (b *RedfishBMC) systemMediaAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || !b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveNamed(s.drives, ids[1]).at()
}

func (b *RedfishBMC) managerMediaActionAt(ids []string) *redfishResource {
	if b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveNamed(b.allDrives(), ids[0]).actionAt(ids[1])
}

func (b *RedfishBMC) systemMediaActionAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || !b.options.MediaUnderSystem {
		return nil
	}
	return redfishDriveNamed(s.drives, ids[1]).actionAt(ids[2])
}

func (d *redfishDrive) at() *redfishResource {
	if d == nil {
		return nil
	}
	return &redfishResource{
		get:   d.resource,
		patch: d.change,
		serve: d.broken(func(c *redfishCall) { c.reply(http.StatusOK, d.resource()) }),
	}
}

func (d *redfishDrive) actionAt(word string) *redfishResource {
	if d == nil || d.system.bmc.now().Redfish.Media.OnlyPatch {
		return nil
	}
	switch word {
	case "VirtualMedia.InsertMedia":
		return &redfishResource{action: true, post: d.broken(d.insert)}
	case "VirtualMedia.EjectMedia":
		return &redfishResource{action: true, post: d.broken(func(c *redfishCall) {
			var nothing struct{}
			if c.r.ContentLength == 0 || c.read(&nothing) {
				d.eject(c)
			}
		})}
	}
	return nil
}

// broken answers 500 while the drive has not come to itself after an ejection.
func (d *redfishDrive) broken(then func(*redfishCall)) func(*redfishCall) {
	return func(c *redfishCall) {
		d.system.bmc.stateMu.Lock()
		ejected := d.ejected
		d.system.bmc.stateMu.Unlock()
		if !ejected.IsZero() && time.Since(ejected) < c.faults.Redfish.Media.EjectBroken {
			c.broken(errors.New("the virtual drive is not ready"))
			return
		}
		then(c)
	}
}

func (d *redfishDrive) resource() map[string]any {
	b := d.system.bmc
	faults := b.now().Redfish.Media
	b.stateMu.Lock()
	defer b.stateMu.Unlock()
	words := redfishDriveWords{d.image, d.protocol, d.user, d.medium != nil}
	if !d.ejected.IsZero() && time.Since(d.ejected) < faults.EjectLag {
		words = d.was
	}
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	fields := map[string]any{
		"MediaTypes": d.types, "Inserted": words.inserted, "WriteProtected": !d.writable,
		"Image": text(words.image), "ImageName": nil, "ConnectedVia": "NotConnected",
		"UserName": text(words.user), "Password": nil, "TransferProtocolType": text(words.protocol),
		"VerifyCertificate": false, "Status": redfishHealthy(),
	}
	if words.inserted {
		fields["ConnectedVia"], fields["ImageName"], fields["TransferMethod"] = "URI", path.Base(words.image), "Stream"
	}
	if !faults.OnlyPatch {
		fields["Actions"] = map[string]any{
			"#VirtualMedia.InsertMedia": map[string]any{
				"target": d.path() + "/Actions/VirtualMedia.InsertMedia",
				"TransferProtocolType@Redfish.AllowableValues": []string{"HTTP", "HTTPS"},
				"TransferMethod@Redfish.AllowableValues":       []string{"Stream"},
			},
			"#VirtualMedia.EjectMedia": map[string]any{"target": d.path() + "/Actions/VirtualMedia.EjectMedia"},
		}
	}
	return redfishNew(d.path(), "#VirtualMedia.v1_6_5.VirtualMedia", d.id, "Virtual drive "+d.id, fields)
}

// redfishInsert is what a client may send to insert a medium.
type redfishInsert struct {
	Image                                *string
	Inserted, WriteProtected             *bool
	UserName, Password                   *string
	TransferProtocolType, TransferMethod *string
}

// judge returns the message of a refusal and its arguments, or "".
func (i redfishInsert) judge(faults RedfishMediaFaults) (string, []string) {
	const action = "VirtualMedia.InsertMedia"
	sent := map[string]bool{
		"Image": i.Image != nil, "Inserted": i.Inserted != nil, "WriteProtected": i.WriteProtected != nil,
		"UserName": i.UserName != nil, "Password": i.Password != nil,
		"TransferProtocolType": i.TransferProtocolType != nil, "TransferMethod": i.TransferMethod != nil,
	}
	for _, name := range faults.Refuse {
		if sent[name] {
			return "ActionParameterNotSupported", []string{name, action}
		}
	}
	for _, name := range append([]string{"Image"}, faults.Need...) {
		if !sent[name] {
			return "ActionParameterMissing", []string{action, name}
		}
	}
	u, err := url.Parse(*i.Image)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return "ActionParameterValueNotInList", []string{*i.Image, "Image", action}
	}
	if p := i.TransferProtocolType; p != nil && *p != strings.ToUpper(u.Scheme) {
		return "ActionParameterValueConflict", []string{"TransferProtocolType", *p}
	}
	if m := i.TransferMethod; m != nil && *m != "Stream" {
		return "ActionParameterValueNotInList", []string{*m, "TransferMethod", action}
	}
	if i.Inserted != nil && !*i.Inserted {
		return "ActionParameterValueConflict", []string{"Inserted", "false"}
	}
	return "", nil
}

func (d *redfishDrive) insert(c *redfishCall) {
	var want redfishInsert
	if c.read(&want) {
		d.insertAs(c, want)
	}
}

func (d *redfishDrive) insertAs(c *redfishCall, want redfishInsert) {
	b := d.system.bmc
	if message, args := want.judge(c.faults.Redfish.Media); message != "" {
		c.refuse(http.StatusBadRequest, message, args...)
		return
	}
	b.stateMu.Lock()
	full := d.medium != nil
	b.stateMu.Unlock()
	if full {
		c.refuse(http.StatusBadRequest, "ResourceInUse")
		return
	}
	ctx := context.WithoutCancel(c.r.Context())
	medium := &httpMedium{url: *want.Image, client: b.outside}
	if want.UserName != nil && want.Password != nil {
		medium.user, medium.password = *want.UserName, *want.Password
	}
	// An image that is not there is seen before the answer, as iDRACs see it.
	if err := medium.open(ctx); err != nil {
		c.log(": image not readable")
		m := redfishMessage("ResourceMissingAtURI", *want.Image)
		m["Resolution"] = err.Error()
		redfishError(c.w, http.StatusBadRequest, m)
		return
	}
	c.change("Insert medium", false, func() error {
		if d.real {
			if err := d.system.machine.(MediaDrive).InsertMedium(ctx, medium); err != nil {
				b.record("insert", d.id+": "+*want.Image, false)
				return err
			}
		}
		b.record("insert", d.id+": "+*want.Image, true)
		u, _ := url.Parse(*want.Image) // judge did
		b.stateMu.Lock()
		d.image, d.protocol, d.medium, d.ejected = *want.Image, strings.ToUpper(u.Scheme), medium, time.Time{}
		d.user, d.writable = medium.user, false // a CD
		b.stateMu.Unlock()
		b.event("ResourceEvent.ResourceChanged", d.path())
		return nil
	})
}

func (d *redfishDrive) eject(c *redfishCall) {
	b := d.system.bmc
	ctx := context.WithoutCancel(c.r.Context())
	c.change("Eject medium", false, func() error {
		b.stateMu.Lock()
		full := d.medium != nil
		b.stateMu.Unlock()
		b.record("eject", d.id, full)
		if !full {
			return nil
		}
		if d.real {
			if err := d.system.machine.(MediaDrive).EjectMedium(ctx); err != nil {
				return err
			}
		}
		b.stateMu.Lock()
		d.was = redfishDriveWords{d.image, d.protocol, d.user, true}
		d.image, d.protocol, d.user, d.medium, d.ejected = "", "", "", nil, time.Now()
		b.stateMu.Unlock()
		b.event("ResourceEvent.ResourceChanged", d.path())
		return nil
	})
}

// change is a PATCH: an Image inserts, null or Inserted: false ejects.
func (d *redfishDrive) change(c *redfishCall) {
	// A pointer does not tell null from what is absent.
	body := struct {
		redfishInsert
		Image redfishNullable
	}{}
	if !c.read(&body) {
		return
	}
	want := body.redfishInsert
	want.Image = body.Image.value
	switch {
	case body.Image.value != nil && *body.Image.value != "":
		d.insertAs(c, want)
	case body.Image.sent || want.Inserted != nil && !*want.Inserted:
		d.eject(c)
	default:
		c.refuse(http.StatusBadRequest, "PropertyMissing", "Image")
	}
}

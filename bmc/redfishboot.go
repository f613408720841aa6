package bmc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// redfishBoot is the part of ComputerSystem.Boot that is read.
type redfishBoot struct {
	Target  string          `json:"BootSourceOverrideTarget"`
	Enabled string          `json:"BootSourceOverrideEnabled"`
	Mode    string          `json:"BootSourceOverrideMode"`
	URI     json.RawMessage `json:"HttpBootUri"` // nil: there is no such property
	Targets []string        `json:"BootSourceOverrideTarget@Redfish.AllowableValues"`
	Modes   []string        `json:"BootSourceOverrideMode@Redfish.AllowableValues"`
}

// bootPatch is what is written of it.
type bootPatch struct {
	Target  string  `json:"BootSourceOverrideTarget,omitempty"`
	Enabled string  `json:"BootSourceOverrideEnabled,omitempty"`
	Mode    string  `json:"BootSourceOverrideMode,omitempty"`
	URI     *string `json:"HttpBootUri,omitempty"`
}

// bootPlace is a resource with a Boot object.
type bootPlace struct {
	uri, etag string
	boot      redfishBoot
}

func (b redfishBoot) uri() string {
	var uri string
	_ = json.Unmarshal(b.URI, &uri) // null, or nothing
	return uri
}

// overrides tells whether it is about an override at all: Lenovo's settings
// object has a boot order in it and no more.
func (b *redfishBoot) overrides() bool { return b != nil && (b.Target != "" || b.Enabled != "") }

// armed reads what a Boot object arms. Where it tells no mode (OpenBMC on GB200,
// Supermicro X10, an AMI with nothing armed) it is the one that was asked for.
func (b redfishBoot) armed(asked bool) NextBoot {
	if b.Enabled != "Once" && b.Enabled != "Continuous" || b.Target == "" || b.Target == "None" {
		return NextBoot{Device: BootDefault}
	}
	n := NextBoot{UEFI: b.Mode == "UEFI" || b.Mode == "" && asked}
	switch b.Target {
	case "Pxe":
		n.Device = BootNetwork
	case "Hdd":
		n.Device = BootDisk
	case "Cd", "UsbCd", "CD/DVD":
		n.Device = BootCD
	case "UefiHdd": // of Supermicro X10, whose targets tell the mode
		n.Device, n.UEFI = BootDisk, true
	case "UefiCd", "UefiUsbCd":
		n.Device, n.UEFI = BootCD, true
	case "UefiHttp":
		n.Device, n.UEFI, n.URI = BootHTTP, true, b.uri() // there is no other mode for it
	default: // somebody armed the setup: neither ours nor "no override"
		n.Device = BootDevice(strings.ToLower(b.Target))
	}
	return n
}

// target is the BMC's word for a device, or why it has none.
func (b redfishBoot) target(next NextBoot, cd []string) (string, error) {
	names := map[BootDevice][]string{
		BootDefault: {"None"}, BootNetwork: {"Pxe"}, BootDisk: {"Hdd"}, BootHTTP: {"UefiHttp"}, BootCD: cd,
	}[next.Device]
	if len(names) == 0 { // what somebody armed is no device that we set
		return "", fmt.Errorf("%w: boot from %q", ErrUnsupported, next.Device)
	}
	if next.Device == BootHTTP && next.URI != "" && b.URI == nil {
		return "", fmt.Errorf("%w: a URI for HTTP Boot: there is no HttpBootUri", ErrUnsupported)
	}
	mode := redfishMode(next.UEFI)
	if next.Device != BootDefault && len(b.Modes) > 0 && !slices.Contains(b.Modes, mode) {
		return "", fmt.Errorf("%w: boot mode %s, only %s", ErrUnsupported, mode, strings.Join(b.Modes, ", "))
	}
	if b.Mode == "" && next.UEFI { // then the target may tell it
		for _, name := range names {
			if slices.Contains(b.Targets, "Uefi"+name) {
				return "Uefi" + name, nil
			}
		}
	}
	for _, name := range names {
		if slices.Contains(b.Targets, name) {
			return name, nil
		}
	}
	switch {
	case next.Device == BootDefault:
	case len(b.Targets) > 0:
		return "", fmt.Errorf("%w: boot target %s, only %s", ErrUnsupported, names[0], strings.Join(b.Targets, ", "))
	case next.Device == BootHTTP:
		return "", fmt.Errorf("%w: boot target %s: the BMC does not list its targets", ErrUnsupported, names[0])
	}
	return names[0], nil
}

func redfishMode(uefi bool) string {
	if uefi {
		return "UEFI"
	}
	return "Legacy"
}

// bootForm is a way to write an override; the name is what is remembered of it.
type bootForm struct {
	name  string
	patch bootPatch
}

// bootForms are the forms to try, the learned one first, the next only after a
// refusal. Of the others all three fields come first: AMI and ASRockRack want
// them together, Supermicro takes Continuous back when Enabled is left out and
// flips the mode to Legacy when that is. A field is left out only where it is
// right already (HPE DL160 rejects the mode, others an Enabled that does not
// change); what is read back decides.
func bootForms(now redfishBoot, next NextBoot, target, learned string) []bootForm {
	full := bootPatch{Target: target, Enabled: "Once", Mode: redfishMode(next.UEFI)}
	if next.Device == BootHTTP && now.URI != nil {
		full.URI = &next.URI
	}
	var forms []bootForm
	if next.Device == BootDefault {
		forms = []bootForm{
			{"clear", bootPatch{Target: "None", Enabled: "Disabled"}},
			{"clear-full", bootPatch{Target: "None", Enabled: "Disabled", Mode: now.Mode}},
			{"clear-enabled", bootPatch{Enabled: "Disabled"}},
		}
	} else {
		forms = []bootForm{{"full", full}}
		short := full
		if now.Mode == "" || now.Mode == full.Mode {
			short.Mode = ""
			forms = append(forms, bootForm{"no-mode", short})
		}
		if now.Enabled == full.Enabled {
			short := full
			short.Enabled = ""
			forms = append(forms, bootForm{"no-enabled", short})
		}
		if short.Mode == "" && now.Enabled == full.Enabled {
			short.Enabled = ""
			forms = append(forms, bootForm{"target", short})
		}
	}
	if i := slices.IndexFunc(forms, func(f bootForm) bool { return f.name == learned }); i > 0 {
		first := forms[i]
		forms = append([]bootForm{first}, slices.Delete(forms, i, i+1)...)
	}
	return forms
}

func (d *redfishDriver) nextBoot(ctx context.Context) (next NextBoot, err error) {
	err = d.again(ctx, func() error {
		system, future, err := d.boots(ctx)
		if err != nil {
			return err
		}
		next = system.boot.armed(!d.bios)
		// What waits in the settings object is what the next start will find.
		if future != nil && future.boot.armed(!d.bios).Device != BootDefault {
			next = future.boot.armed(!d.bios)
		}
		return nil
	})
	return next, err
}

func (d *redfishDriver) setNextBoot(ctx context.Context, next NextBoot) error {
	if next.Device != BootDefault {
		d.bios = !next.UEFI
	}
	return d.again(ctx, func() error { return d.arm(ctx, next) })
}

// boots reads the override in force and, where the BMC keeps one, that of its
// settings object (DSP0266, 9.10). Some advertise that object and have no Boot in it.
func (d *redfishDriver) boots(ctx context.Context) (system bootPlace, future *bootPlace, err error) {
	var s struct {
		Manufacturer text         `json:"Manufacturer"`
		Model        text         `json:"Model"`
		ETag         string       `json:"@odata.etag"`
		Boot         *redfishBoot `json:"Boot"`
		Settings     struct {
			Object redfishLink `json:"SettingsObject"`
		} `json:"@Redfish.Settings"`
	}
	uri := d.transport.system
	header, err := d.get(ctx, uri, &s)
	if err != nil {
		return system, nil, err
	}
	if !s.Boot.overrides() {
		return system, nil, fmt.Errorf("%w: the system has no boot override", ErrUnsupported)
	}
	d.facts.of(string(s.Manufacturer), string(s.Model), "")
	system = bootPlace{uri: uri, etag: etagOf(header, s.ETag), boot: *s.Boot}
	at := d.local(s.Settings.Object.ID)
	if at == "" {
		at = d.local(d.facts.get().BootAt)
	}
	if at == "" || at == d.noBoot {
		return system, nil, nil
	}
	future, err = d.bootAt(ctx, at)
	if gone(err) {
		err = nil
	}
	if err == nil && future == nil {
		d.noBoot = at
	}
	return system, future, err
}

// bootAt reads another resource with a Boot object; nil where it has none.
func (d *redfishDriver) bootAt(ctx context.Context, uri string) (*bootPlace, error) {
	var s struct {
		ETag string       `json:"@odata.etag"`
		Boot *redfishBoot `json:"Boot"`
	}
	header, err := d.get(ctx, uri, &s)
	if err != nil || !s.Boot.overrides() {
		return nil, err
	}
	return &bootPlace{uri: uri, etag: etagOf(header, s.ETag), boot: *s.Boot}, nil
}

func etagOf(header http.Header, body string) string {
	if etag := header.Get("ETag"); etag != "" {
		return etag
	}
	return body
}

// arm looks, writes the override and nothing else, and repairs once what a BMC
// changes that it was not asked to.
func (d *redfishDriver) arm(ctx context.Context, next NextBoot) error {
	system, future, err := d.boots(ctx)
	if err != nil {
		return err
	}
	at := system
	if future != nil {
		at = *future
		if len(at.boot.Targets) == 0 {
			at.boot.Targets = system.boot.Targets
		}
	}
	facts := d.facts.get()
	target, err := at.boot.target(next, quirksOf(facts.Vendor, facts.Model, facts.Firmware).cd)
	if err != nil {
		return err
	}
	forms := bootForms(at.boot, next, target, facts.BootForm)
	var refused error
	for _, form := range forms {
		err := d.patch(ctx, at.uri, at.etag, map[string]any{"Boot": form.patch})
		if uri := d.futureURI(err, at.uri); uri != "" {
			place, placeErr := d.bootAt(ctx, uri)
			if placeErr != nil || place == nil {
				return err
			}
			at = *place
			d.facts.learn(func(f *Facts) { f.BootAt = uri })
			err = d.patch(ctx, at.uri, at.etag, map[string]any{"Boot": form.patch})
		}
		if err == nil {
			d.facts.learn(func(f *Facts) { f.BootForm = form.name })
			return d.repair(ctx, at.uri, next)
		}
		if !payloadRefused(err) {
			return err
		}
		if refused == nil {
			refused = err // the form that most BMCs take says most
		}
		// iDRAC 13G answers 400 and has changed things: look before the next form.
		now, err := d.bootAt(ctx, at.uri)
		if err != nil {
			return err
		}
		if now != nil {
			if now.boot.armed(!d.bios).same(next) {
				return nil
			}
			at.etag = now.etag
		}
	}
	return refused
}

// repair writes the mode once more where the BMC took the target and flipped the
// mode (Supermicro); whoever called reads back.
func (d *redfishDriver) repair(ctx context.Context, uri string, next NextBoot) error {
	if next.Device == BootDefault || next.Device == BootHTTP {
		return nil
	}
	now, err := d.bootAt(ctx, uri)
	if err != nil || now == nil {
		return nil // the write itself went well; the caller looks again
	}
	if armed := now.boot.armed(!d.bios); armed.Device != next.Device || armed.UEFI == next.UEFI || now.boot.Mode == "" {
		return nil
	}
	d.target.Log.Warn("the BMC changed the boot mode that it was told; telling it once more", "mode", redfishMode(next.UEFI))
	if err := d.patch(ctx, uri, now.etag, map[string]any{"Boot": bootPatch{Mode: redfishMode(next.UEFI)}}); err != nil && !payloadRefused(err) {
		return err
	}
	return nil
}

// payloadRefused: the BMC did not like what it was sent, and may like another form.
func payloadRefused(err error) bool {
	var answer *AnswerError
	return errors.As(err, &answer) && (answer.Reason == ErrRejected || answer.Reason == ErrUnsupported)
}

var futureState = regexp.MustCompile(`/redfish/v1/[^\s"'<>]+`)

// futureURI is where AMI says that the override has to be written (Redfish
// Tacklebox #144); "" for any other error.
func (d *redfishDriver) futureURI(err error, at string) string {
	var answer *AnswerError
	if !errors.As(err, &answer) || !strings.HasSuffix(answer.Code, "OperationSupportedInFutureStateURI") {
		return ""
	}
	uri := strings.TrimRight(futureState.FindString(answer.Message), ".,")
	if !strings.HasPrefix(uri, d.transport.system+"/") {
		uri = strings.TrimSuffix(d.transport.system, "/") + "/SD"
	}
	if uri == at {
		return ""
	}
	return uri
}

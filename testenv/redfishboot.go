package testenv

import (
	"net/http"
	"net/url"
	"slices"
	"time"
)

// redfishTargetName is a boot target in Redfish's words.
type redfishTargetName struct {
	name   string
	device BootDevice
}

// redfishTargets are the boot targets that a machine may offer.
var redfishTargets = []redfishTargetName{{"None", BootNone}, {"Pxe", BootPXE}, {"Hdd", BootDisk}, {"Cd", BootCD}, {"UefiHttp", BootHTTP}}

func redfishTarget(device BootDevice) string {
	for _, t := range redfishTargets {
		if t.device == device {
			return t.name
		}
	}
	return "None"
}

func redfishMode(uefi bool) string { return redfishEither(uefi, "UEFI", "Legacy") }

// redfishBoot is the Boot object as it can be written.
type redfishBoot struct {
	BootSourceOverrideTarget  *string
	BootSourceOverrideEnabled *string
	BootSourceOverrideMode    *string
	HttpBootUri               *string
}

// redfishBootPatch is what a client may write of a system.
type redfishBootPatch struct {
	Boot *redfishBoot
}

// redfishOverride is an override in Redfish's words.
type redfishOverride struct {
	target  BootDevice
	enabled string // Disabled, Once or Continuous
	uefi    bool
	uri     string
}

// once is what the machine is told.
func (o redfishOverride) once() BootOnce {
	if o.enabled == "Disabled" || o.target == BootNone {
		return BootOnce{}
	}
	b := BootOnce{Device: o.target, UEFI: o.uefi}
	if o.target == BootHTTP {
		b.URI = o.uri
	}
	return b
}

// patched applies a patch to the override in force: what is left out stays. It
// returns the message of a refusal and its arguments.
func (o redfishOverride) patched(p redfishBoot, devices []BootDevice, faults RedfishFaults) (redfishOverride, string, []string) {
	refuse := func(message string, args ...string) (redfishOverride, string, []string) {
		return redfishOverride{}, message, args
	}
	if faults.RefusePartialBoot && (p.BootSourceOverrideTarget == nil || p.BootSourceOverrideEnabled == nil || p.BootSourceOverrideMode == nil) {
		return refuse("PropertyMissing", "Boot")
	}
	if v := p.BootSourceOverrideTarget; v != nil {
		i := slices.IndexFunc(redfishTargets, func(t redfishTargetName) bool { return t.name == *v })
		if i < 0 || redfishTargets[i].device != BootNone && !slices.Contains(devices, redfishTargets[i].device) {
			return refuse("PropertyValueNotInList", *v, "BootSourceOverrideTarget")
		}
		o.target = redfishTargets[i].device
	}
	switch v := p.BootSourceOverrideEnabled; {
	case v == nil:
		if faults.NeedEnabled && o.enabled == "Continuous" {
			o.enabled = "Once"
		}
	case *v == o.enabled && faults.RefuseUnchangedBoot:
		return refuse("PropertyValueConflict", "BootSourceOverrideEnabled", "BootSourceOverrideEnabled")
	case *v == "Once", *v == "Disabled", *v == "Continuous" && !faults.RefuseContinuous:
		o.enabled = *v
	default:
		return refuse("PropertyValueNotInList", *v, "BootSourceOverrideEnabled")
	}
	if v := p.BootSourceOverrideMode; v != nil {
		switch *v {
		case "UEFI", "Legacy":
			o.uefi = *v == "UEFI"
		default:
			return refuse("PropertyValueNotInList", *v, "BootSourceOverrideMode")
		}
	}
	if v := p.HttpBootUri; v != nil {
		if u, err := url.Parse(*v); *v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
			return refuse("PropertyValueFormatError", *v, "HttpBootUri")
		}
		o.uri = *v
	}
	if o.target == BootHTTP && !o.uefi && o.enabled != "Disabled" {
		return refuse("PropertyValueConflict", "BootSourceOverrideTarget", "BootSourceOverrideMode")
	}
	if o.target == BootNone {
		o.enabled = "Disabled"
	}
	return o, "", nil
}

// override is what is in force, as the machine has it.
func (s *redfishSystem) override() redfishOverride {
	once := s.boot()
	s.bmc.stateMu.Lock()
	uri := s.uri
	s.bmc.stateMu.Unlock()
	if once.Device == BootNone {
		return redfishOverride{enabled: "Disabled", uefi: s.machine.UEFI(), uri: uri}
	}
	s.front.mu.Lock()
	continuous := s.always
	s.front.mu.Unlock()
	return redfishOverride{target: once.Device, enabled: redfishEither(continuous, "Continuous", "Once"), uefi: once.UEFI, uri: uri}
}

// bootObject is the Boot object of an override.
func (s *redfishSystem) bootObject(o redfishOverride) map[string]any {
	targets := []string{"None"}
	for _, t := range redfishTargets[1:] {
		if slices.Contains(s.devices, t.device) {
			targets = append(targets, t.name)
		}
	}
	enabled := []string{"Disabled", "Once", "Continuous"}
	if s.bmc.now().Redfish.RefuseContinuous {
		enabled = enabled[:2]
	}
	boot := map[string]any{
		"BootSourceOverrideTarget":                          redfishTarget(o.target),
		"BootSourceOverrideEnabled":                         o.enabled,
		"BootSourceOverrideMode":                            redfishMode(o.uefi),
		"BootSourceOverrideTarget@Redfish.AllowableValues":  targets,
		"BootSourceOverrideEnabled@Redfish.AllowableValues": enabled,
		"BootSourceOverrideMode@Redfish.AllowableValues":    []string{"UEFI", "Legacy"},
	}
	if slices.Contains(s.devices, BootHTTP) {
		boot["HttpBootUri"] = nil
		if o.uri != "" {
			boot["HttpBootUri"] = o.uri
		}
	}
	return boot
}

// settingsPath is where the settings object of the system stands.
func (s *redfishSystem) settingsPath() string {
	if s.bmc.now().Redfish.Settings == SettingsFuture {
		return s.path() + "/SD"
	}
	return s.path() + "/Settings"
}

// settingsAt is the settings object with that last word, or nil.
func (b *RedfishBMC) settingsAt(ids []string, word string) *redfishResource {
	s := b.systemNamed(ids[0])
	kind := b.now().Redfish.Settings
	if s == nil || kind == SettingsNone || s.settingsPath() != s.path()+"/"+word {
		return nil
	}
	r := &redfishResource{get: func() map[string]any {
		fields := map[string]any{}
		switch kind {
		case SettingsDecoy:
		case SettingsOrder:
			fields["Boot"] = map[string]any{"BootOrder": []string{}}
		default:
			fields["Boot"] = s.bootObject(s.future())
		}
		return redfishNew(s.settingsPath(), redfishSystemType, word, "Settings of the system", fields)
	}}
	if kind != SettingsDecoy && kind != SettingsOrder {
		r.patch = func(c *redfishCall) { s.patchBoot(c, true) }
	}
	return r
}

// future is the override that the next start will bring into force.
func (s *redfishSystem) future() redfishOverride {
	s.bmc.stateMu.Lock()
	pending := s.pending
	s.bmc.stateMu.Unlock()
	if pending != nil {
		return *pending
	}
	return s.override()
}

// patchBoot is a PATCH of the system, or of its settings object.
func (s *redfishSystem) patchBoot(c *redfishCall, settings bool) {
	faults := c.faults.Redfish
	var patch redfishBootPatch
	if !c.read(&patch) {
		return
	}
	switch {
	case patch.Boot == nil:
		c.refuse(http.StatusBadRequest, "PropertyMissing", "Boot")
		return
	case !settings && faults.Settings == SettingsFuture:
		c.refuse(http.StatusBadRequest, "Future.OperationSupportedInFutureStateURI", s.settingsPath())
		return
	case !settings && faults.Settings == SettingsObject:
		c.refuse(http.StatusBadRequest, "PropertyNotWritable", "Boot")
		return
	case s.inPOST(faults.POST):
		c.refuse(http.StatusBadRequest, "POST.UnableToModifyDuringSystemPOST")
		return
	}
	now := s.override()
	if settings {
		now = s.future()
	}
	want, message, args := now.patched(*patch.Boot, s.devices, faults)
	if message != "" {
		c.refuse(http.StatusBadRequest, message, args...)
		return
	}
	if faults.ModeJob && want.uefi != now.uefi {
		s.modeJob(c, want)
		return
	}
	c.change("Boot", false, func() error {
		if !settings {
			return s.setOverride(want)
		}
		s.bmc.stateMu.Lock()
		defer s.bmc.stateMu.Unlock()
		s.pending = &want
		s.bmc.record("set-boot", "settings: "+want.once().String(), true)
		return nil
	})
}

// setOverride brings an override into force.
func (s *redfishSystem) setOverride(o redfishOverride) error {
	if !s.bmc.now().IgnoreBoot {
		s.bmc.stateMu.Lock()
		s.uri = o.uri
		s.bmc.stateMu.Unlock()
	}
	return s.setBootFor(o.once(), o.enabled == "Continuous")
}

// applyPending is the start that a settings object waits for.
func (s *redfishSystem) applyPending() error {
	s.bmc.stateMu.Lock()
	pending := s.pending
	s.pending = nil
	s.bmc.stateMu.Unlock()
	if pending == nil {
		return nil
	}
	return s.setOverride(*pending)
}

// inPOST tells whether the machine started a moment ago.
func (s *redfishSystem) inPOST(length time.Duration) bool {
	s.front.mu.Lock()
	defer s.front.mu.Unlock()
	return length > 0 && !s.started.IsZero() && time.Since(s.started) < length && s.machine.Powered()
}

// modeJob stores the change for the next start, as Dell's BIOS configuration
// jobs do; until then there is no second.
func (s *redfishSystem) modeJob(c *redfishCall, want redfishOverride) {
	s.bmc.stateMu.Lock()
	waiting := s.pending != nil
	if !waiting {
		s.pending = &want
	}
	s.bmc.stateMu.Unlock()
	if waiting {
		c.refuse(http.StatusBadRequest, "Job.PendingConfiguration")
		return
	}
	s.bmc.record("set-boot", "job: "+want.once().String(), true)
	t := s.bmc.newTask("Configure the boot mode")
	s.bmc.stateMu.Lock()
	s.job = t
	s.bmc.stateMu.Unlock()
	c.accepted(t)
}

package testenv

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"time"
)

// RedfishSystem is a system beside the first one of a BMC.
type RedfishSystem struct {
	ID, UUID string
	Machine  Machine // nil: always off, and refuses everything
}

// redfishSystem is one machine in the tree. What the front's lock does not guard
// RedfishBMC.stateMu does.
type redfishSystem struct {
	bmcSystem
	bmc      *RedfishBMC
	id, uuid string
	devices  []BootDevice // what it can be told to start from

	uri     string           // HttpBootUri
	pending *redfishOverride // for the next start
	job     *redfishTaskRun  // that waits for it
	entries []redfishEntry
	nextLog int
	drives  []*redfishDrive
}

const redfishSystemType = "#ComputerSystem.v1_28_0.ComputerSystem"

func (s *redfishSystem) path() string { return redfishRoot + "/Systems/" + s.id }

func (b *RedfishBMC) systemNamed(id string) *redfishSystem {
	for _, s := range b.systems {
		if s.id == id {
			return s
		}
	}
	return nil
}

// BootDevices is a Machine that tells what it starts from beside its network
// cards and disks.
type BootDevices interface {
	BootDevices() []BootDevice
}

func (b *RedfishBMC) addSystem(id, uuid string, machine Machine) {
	s := &redfishSystem{bmc: b, id: id, uuid: uuid, devices: []BootDevice{BootPXE, BootDisk}}
	if d, ok := machine.(BootDevices); ok {
		s.devices = append(s.devices, d.BootDevices()...)
	}
	name := ""
	if len(b.systems) > 0 {
		name = id
	}
	b.systems = append(b.systems, s)
	s.attach(b.bmcFront, name, machine)
	s.addDrives()
	if w, ok := machine.(Watched); ok {
		w.Watch(s.tell)
	}
}

// tell notes a change of the power in the log and in events.
func (s *redfishSystem) tell(c MachineChange) {
	message := "ResourceEvent.ResourcePoweredOn"
	switch c {
	case MachineOff:
		message = "ResourceEvent.ResourcePoweredOff"
	case MachineReset:
		message = "ResourceEvent.ResourceChanged"
	}
	s.bmc.logEntry(s, "OK", message, s.path(), "system "+string(c))
	s.bmc.event(message, s.path(), s.path())
}

func (s *redfishSystem) powerState() string {
	now, said := s.machine.Powered(), s.powered()
	if now != said && s.bmc.now().Redfish.PoweringWords {
		return redfishEither(now, "PoweringOn", "PoweringOff")
	}
	return redfishEither(said, "On", "Off")
}

// redfishResetType is a kind of reset: what it does to a machine, and in which
// states it changes something.
type redfishResetType struct {
	kind, verb string
	on, off    bool
}

var redfishResets = []redfishResetType{
	{"On", "power-on", false, true},
	{"ForceOn", "power-on", false, true},
	{"ForceOff", "power-off", true, false},
	{"GracefulShutdown", "shutdown", true, false},
	{"GracefulRestart", "restart", true, false},
	{"ForceRestart", "reset", true, false},
	{"PowerCycle", "cycle", true, false},
	{"PushPowerButton", "button", true, true},
	{"Nmi", "nmi", true, false},
}

func (s *redfishSystem) resets() []string {
	offered := s.bmc.now().Redfish.Resets
	var kinds []string
	for _, r := range redfishResets {
		if _, ok := s.machine.(Interrupter); r.kind == "Nmi" && !ok {
			continue
		}
		if offered == nil || slices.Contains(offered, r.kind) {
			kinds = append(kinds, r.kind)
		}
	}
	return kinds
}

func (s *redfishSystem) reset(c *redfishCall) {
	var action struct{ ResetType *string }
	if !c.read(&action) {
		return
	}
	if action.ResetType == nil {
		c.refuse(http.StatusBadRequest, "ActionParameterMissing", "ComputerSystem.Reset", "ResetType")
		return
	}
	kind := *action.ResetType
	if !slices.Contains(s.resets(), kind) {
		c.refuse(http.StatusBadRequest, "ActionParameterValueNotInList", kind, "ResetType", "ComputerSystem.Reset")
		return
	}
	i := slices.IndexFunc(redfishResets, func(r redfishResetType) bool { return r.kind == kind })
	how, on, faults := redfishResets[i], s.machine.Powered(), c.faults.Redfish
	s.front.mu.Lock()
	early := how.verb == "power-on" && !on && !s.changed.IsZero() && time.Since(s.changed) < faults.OnRefused
	s.front.mu.Unlock()
	switch {
	case on && !how.on || !on && !how.off:
		s.bmc.record(how.verb, "refused: already so", false)
		if faults.AcceptSame {
			c.w.WriteHeader(http.StatusNoContent)
			return
		}
		c.fail(http.StatusConflict, "ActionParameterValueConflict", "ResetType", kind)
		return
	case early:
		s.bmc.record(how.verb, "refused: off a moment ago", false)
		c.fail(http.StatusConflict, "ActionParameterValueConflict", "ResetType", kind)
		return
	}
	// The machine's own time must not depend on whether the client still listens.
	ctx := context.WithoutCancel(c.r.Context())
	c.change("Reset of system "+s.id, true, func() error { return s.switchPower(ctx, how.verb) })
}

// switchPower does one reset type.
func (s *redfishSystem) switchPower(ctx context.Context, verb string) error {
	m := s.machine
	if verb == "button" {
		verb = redfishEither(m.Powered(), "shutdown", "power-on")
	}
	switch verb {
	case "power-on", "reset", "cycle", "restart":
		if err := s.applyPending(); err != nil {
			return err
		}
	}
	defer s.finishJob(verb)
	switch verb {
	case "power-on":
		return s.power(ctx, verb, m.PowerOn)
	case "power-off":
		return s.power(ctx, verb, m.PowerOff)
	case "shutdown":
		return s.power(ctx, verb, m.Shutdown)
	case "reset":
		return s.power(ctx, verb, m.Reset)
	case "cycle":
		return s.power(ctx, verb, func(ctx context.Context) error {
			if err := m.PowerOff(ctx); err != nil {
				return err
			}
			return m.PowerOn(ctx)
		})
	case "restart":
		// Who listens to the power button goes off and is started again; who does
		// not stays as it is, as with real ones.
		return s.power(ctx, verb, func(ctx context.Context) error {
			if err := m.Shutdown(ctx); err != nil || m.Powered() {
				return err
			}
			return m.PowerOn(ctx)
		})
	case "nmi":
		line, ok := m.(Interrupter)
		if !ok {
			return errors.New("the machine has no NMI line")
		}
		return s.power(ctx, verb, line.NMI)
	}
	return errors.New("unknown power command " + verb)
}

// finishJob ends the job that waited for a start.
func (s *redfishSystem) finishJob(verb string) {
	if verb == "power-off" || verb == "shutdown" || verb == "nmi" {
		return
	}
	s.bmc.stateMu.Lock()
	job := s.job
	s.job = nil
	s.bmc.stateMu.Unlock()
	if job != nil {
		s.bmc.endTask(job, nil)
	}
}

func (b *RedfishBMC) systemCollection([]string) *redfishResource {
	return &redfishResource{get: func() map[string]any {
		var members []string
		for _, s := range b.systems {
			members = append(members, s.path())
		}
		return redfishCollection(redfishRoot+"/Systems", "ComputerSystem", members)
	}}
}

func (b *RedfishBMC) systemAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{get: s.resource, patch: func(c *redfishCall) { s.patchBoot(c, false) }}
}

func (s *redfishSystem) resource() map[string]any {
	b := s.bmc
	path, faults := s.path(), b.now().Redfish
	reset := map[string]any{"target": path + "/Actions/ComputerSystem.Reset"}
	if faults.ActionInfo {
		reset["@Redfish.ActionInfo"] = path + "/ResetActionInfo"
	} else {
		reset["ResetType@Redfish.AllowableValues"] = s.resets()
	}
	fields := map[string]any{
		"SystemType":   "Physical",
		"Manufacturer": b.options.Manufacturer,
		"Model":        b.options.Model,
		"PowerState":   s.powerState(),
		"Status":       redfishHealthy(),
		"Boot":         s.bootObject(s.override()),
		"Actions":      map[string]any{"#ComputerSystem.Reset": reset},
		"LogServices":  redfishID(path + "/LogServices"),
		"Links": map[string]any{
			"ManagedBy": []any{redfishID(redfishManager)},
			"Chassis":   []any{redfishID(redfishChassis)},
		},
	}
	s.hardware(fields)
	if c := b.ssh.tells(s); c != nil {
		fields["SerialConsole"] = c
	}
	uuid := s.uuid
	if s == b.systems[0] {
		board := b.board.Load()
		if uuid = board.UUID; board.Serial != "" {
			fields["SerialNumber"] = board.Serial
		}
	}
	if uuid != "" {
		fields["UUID"] = uuid
	}
	if len(s.drives) > 0 && b.options.MediaUnderSystem {
		fields["VirtualMedia"] = redfishID(path + "/VirtualMedia")
	}
	if faults.Settings != SettingsNone {
		fields["@Redfish.Settings"] = map[string]any{
			"@odata.type": "#Settings.v1_5_0.Settings", "SettingsObject": redfishID(s.settingsPath()),
			"SupportedApplyTimes": []string{"OnReset"},
		}
	}
	return redfishNew(path, redfishSystemType, s.id, "System "+s.id, fields)
}

func (b *RedfishBMC) resetAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil {
		return nil
	}
	return &redfishResource{action: true, post: s.reset}
}

func (b *RedfishBMC) resetInfoAt(ids []string) *redfishResource {
	s := b.systemNamed(ids[0])
	if s == nil || !b.now().Redfish.ActionInfo {
		return nil
	}
	return &redfishResource{get: func() map[string]any {
		return redfishActionInfo(s.path()+"/ResetActionInfo", "ResetType", s.resets())
	}}
}

func redfishActionInfo(path, parameter string, values []string) map[string]any {
	return redfishNew(path, "#ActionInfo.v1_6_0.ActionInfo", "ResetActionInfo", "Reset Action Info", map[string]any{
		"Parameters": []any{map[string]any{"Name": parameter, "Required": true, "DataType": "String", "AllowableValues": values}},
	})
}

// redfishNobody is a system without a machine.
type redfishNobody struct{}

var errNobody = errors.New("there is no machine in this slot")

func (redfishNobody) PowerOn(context.Context) error  { return errNobody }
func (redfishNobody) PowerOff(context.Context) error { return nil }
func (redfishNobody) Shutdown(context.Context) error { return nil }
func (redfishNobody) Reset(context.Context) error    { return errNobody }
func (redfishNobody) Powered() bool                  { return false }
func (redfishNobody) UEFI() bool                     { return false }
func (redfishNobody) SetBootOnce(BootOnce) error     { return errNobody }
func (redfishNobody) BootOnce() BootOnce             { return BootOnce{} }

var _ Machine = redfishNobody{}

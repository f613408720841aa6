package bmc

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// redfishSystem is the part of a ComputerSystem that power is about.
type redfishSystem struct {
	Power   string `json:"PowerState"`
	Actions struct {
		Reset struct {
			Target  string   `json:"target"`
			Allowed []string `json:"ResetType@Redfish.AllowableValues"`
			Info    string   `json:"@Redfish.ActionInfo"`
		} `json:"#ComputerSystem.Reset"`
	} `json:"Actions"`
}

// PowerStateGet is one request. bmclib's looks at the session, the collection and
// every system in it first.
func (d *redfishDriver) PowerStateGet(ctx context.Context) (state string, err error) {
	err = d.again(ctx, func() error {
		var system redfishSystem
		_, err := d.get(ctx, d.transport.system, &system)
		if state = system.Power; err == nil {
			d.seen, d.seenAt = &system, time.Now()
		}
		return err
	})
	return state, err
}

// seenFor is how long what was just seen serves the command that it was asked for.
const seenFor = time.Second

// resetTypes say what to send, the first that the BMC allows. The button comes
// last: it means the other thing when the state has just changed.
var resetTypes = map[string][]string{
	"on":   {"On", "ForceOn", "PushPowerButton"},
	"off":  {"ForceOff"},
	"soft": {"GracefulShutdown", "PushPowerButton"},
}

// PowerSet knows on, off and soft, and sends nothing to a machine that is there.
// Reset and cycle mean different things on different BMCs.
func (d *redfishDriver) PowerSet(ctx context.Context, state string) (bool, error) {
	if resetTypes[state] == nil {
		return false, fmt.Errorf("%w: power action %q", ErrUnsupported, state)
	}
	want := PowerOff
	if state == "on" {
		want = PowerOn
	}
	err := d.again(ctx, func() error {
		system := d.seen
		d.seen = nil
		if system == nil || time.Since(d.seenAt) > seenFor {
			system = &redfishSystem{}
			if _, err := d.get(ctx, d.transport.system, system); err != nil {
				return err
			}
		}
		if powerState(system.Power) == want {
			return nil
		}
		reset := system.Actions.Reset
		if len(reset.Allowed) == 0 && reset.Info != "" {
			reset.Allowed = d.allowedResets(ctx, reset.Info)
		}
		kind, err := chooseReset(state, reset.Allowed)
		if err != nil {
			return err
		}
		if reset.Target == "" {
			reset.Target = d.transport.system + "/Actions/ComputerSystem.Reset"
		}
		return d.write(ctx, http.MethodPost, reset.Target, "", map[string]string{"ResetType": kind})
	})
	return err == nil, err
}

// chooseReset is the best that the BMC allows; where it does not tell, the usual.
func chooseReset(state string, allowed []string) (string, error) {
	kinds := resetTypes[state]
	if len(allowed) == 0 {
		return kinds[0], nil
	}
	for _, kind := range kinds {
		if slices.Contains(allowed, kind) {
			return kind, nil
		}
	}
	return "", fmt.Errorf("%w: reset type %s, only %s", ErrUnsupported, kinds[0], strings.Join(allowed, ", "))
}

// allowedResets reads them where the action only refers to them; none when that
// cannot be read, since the BMC itself says what it does not take.
func (d *redfishDriver) allowedResets(ctx context.Context, uri string) []string {
	var info struct {
		Parameters []struct {
			Name    string
			Allowed []string `json:"AllowableValues"`
		}
	}
	if _, err := d.get(ctx, uri, &info); err != nil {
		return nil
	}
	for _, p := range info.Parameters {
		if p.Name == "ResetType" {
			return p.Allowed
		}
	}
	return nil
}

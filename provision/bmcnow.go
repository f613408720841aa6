package provision

import (
	"context"
	"fmt"
	"time"

	"recast/bmc"
)

const (
	// askTime is how long somebody who asks for an explanation waits for a BMC.
	askTime = 3 * time.Second
	// askedLately is how long an answer counts as now: who asks again and again
	// must not keep a BMC busy.
	askedLately = 5 * time.Second
)

// bmcNow is what a BMC just said; the zero one was not asked.
type bmcNow struct {
	at    time.Time
	power bmc.PowerState
	next  bmc.BootDevice // "" not known
	err   error
}

func (b bmcNow) off() bool { return b.err == nil && b.power == bmc.PowerOff }

// text is for people; "" where nobody was asked.
func (b bmcNow) text() string {
	switch {
	case b.at.IsZero():
		return ""
	case b.err != nil:
		return "not known: " + b.err.Error()
	}
	text := string(b.power)
	switch b.next {
	case bmc.BootNetwork:
		text += ", and its next boot is by network"
	case bmc.BootDisk:
		text += ", and its next boot is from disk"
	case bmc.BootDefault:
		text += ", with no boot override"
	}
	return text
}

// askBMC reads a machine's power and boot override. It changes nothing, waits for
// no work on that BMC that is under way.
func (e *Engine) askBMC(ctx context.Context, m *machine) bmcNow {
	decl, st := e.Set().Machine(m.name), m.snapshot().Status
	if decl == nil || decl.BMC == nil || !Busy(st.Phase) && st.Phase != Failed || !m.bmcMu.TryLock() {
		return bmcNow{}
	}
	defer m.bmcMu.Unlock()
	if m.asked.at.Add(askedLately).After(e.Now()) {
		return m.asked
	}
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	b := bmcNow{at: e.Now()}
	b.err = e.withBMC(ctx, m.name, func(ctx context.Context, c bmc.Client) error {
		var err error
		if b.power, err = c.Power(ctx); err != nil {
			return err
		}
		if next, err := c.NextBoot(ctx); err == nil {
			b.next = next.Device
		}
		return nil
	})
	if b.err != nil && ctx.Err() != nil {
		b.err = fmt.Errorf("no answer in %s: %w", askTime, b.err)
	}
	m.asked = b
	return b
}

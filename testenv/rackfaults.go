package testenv

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"recast/inventory"
)

// member finds a machine of either kind.
func (r *Rack) member(name string) (*rackMember, error) {
	var names []string
	for i := range r.members {
		if m := &r.members[i]; m.spec.Name == name {
			return m, nil
		}
		names = append(names, r.members[i].spec.Name)
	}
	return nil, fmt.Errorf("there is no machine %q; %s", name, inventory.DidYouMean(name, names))
}

// SetFaults makes these the faults of a machine and of its BMC, and those that
// happen once happen, or are armed; what it had is over. It changes nothing where one of them
// does not fit the machine.
func (r *Rack) SetFaults(name string, faults []Fault) error {
	m, err := r.member(name)
	if err != nil {
		return err
	}
	for _, f := range faults {
		if err := f.fits(name, m.spec.BMC); err != nil {
			return err
		}
	}
	var bmc BMCFaults
	var own machineFaults
	var once []Fault
	cable, pulled := m.spec.Cable, false
	for _, f := range faults {
		switch k := f.kind(); {
		case k.field != nil:
			f.set(k, &bmc)
		case k.Once && k.Of != "machine":
			once = append(once, f)
		case f.Name == "no-link":
			pulled, own.noLink = true, true
		case k.Of == "link":
			f.onCable(&cable)
		default:
			own.set(f)
		}
	}
	m.SetFaults(func(f *BMCFaults) { *f = bmc })
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	errs := []error{r.setCable(m, cable), m.setBoard(ctx, own.swapped)}
	if m.simulated != nil {
		m.simulated.fail(own, len(faults) == 0)
	} else {
		errs = append(errs, m.qemu.fail(ctx, own, len(faults) == 0))
		for _, nic := range m.qemu.NICs {
			errs = append(errs, r.Net.SetLink(nic.Tap, !pulled))
		}
	}
	for _, f := range once {
		if f.Name == "new-certificate" {
			errs = append(errs, m.Redfish.SwapCertificate())
		} else {
			m.either().Restart()
		}
	}
	m.faults = slices.DeleteFunc(slices.Clone(faults), func(f Fault) bool { return f.kind().Once })
	return errors.Join(errs...)
}

// setBoard puts in another board or its own, where it is not in already.
func (m *rackMember) setBoard(ctx context.Context, swapped bool) error {
	board := Board{m.uuid, m.serial}
	if swapped {
		board = board.other()
	}
	if m.board == board || m.board == (Board{}) && !swapped {
		return nil
	}
	m.board = board
	var err error
	if m.simulated != nil {
		err = m.simulated.SetBoard(ctx, board)
	} else {
		err = m.qemu.SetBoard(ctx, board)
	}
	if b := m.either(); b != nil {
		err = errors.Join(err, b.SetBoard(board))
	}
	return err
}

// FaultsOf are those that a machine has now.
func (r *Rack) FaultsOf(name string) ([]Fault, error) {
	m, err := r.member(name)
	if err != nil {
		return nil, err
	}
	return m.faults, nil
}

// Reset pulls the reset line of a machine. One that is off and has no BMC is started, as
// by its button: nobody else can.
func (r *Rack) Reset(ctx context.Context, name string) error {
	m, err := r.member(name)
	if err != nil {
		return err
	}
	switch {
	case m.machine.Powered():
		return m.machine.Reset(ctx)
	case m.spec.BMC == BMCNone || m.spec.BMC == "":
		return m.machine.PowerOn(ctx)
	}
	return fmt.Errorf("%s is off; recast power on %s starts it", name, name)
}

// RequestsOf is what the BMC of a machine was asked.
func (r *Rack) RequestsOf(name string) ([]BMCRequest, error) {
	m, err := r.member(name)
	if err != nil {
		return nil, err
	}
	b := m.either()
	if b == nil {
		return nil, fmt.Errorf("%s has no BMC", name)
	}
	return b.Requests(), nil
}

// machineFaults are those of a machine itself.
type machineFaults struct {
	dead, noLink, diskGone         bool
	diskSize, diskError, readError int64 // 0: none
	powerCut, reset                int64 // once; 0: not
	hangs                          int
	swapped                        bool
}

func (s *machineFaults) set(f Fault) {
	size, _ := inventory.ParseSize(f.Value) // ParseFault has read it
	switch f.Name {
	case "no-boot":
		s.dead = true
	case "disk-gone":
		s.diskGone = true
	case "disk-size":
		s.diskSize = size
	case "disk-error":
		s.diskError = size
	case "disk-read-error":
		s.readError = size
	case "swapped-board":
		s.swapped = true
	case "power-cut":
		s.powerCut = size
	case "reset":
		s.reset = size
	case "restart-hangs":
		s.hangs, _ = strconv.Atoi(f.Value)
	}
}

// fail makes these the faults of the machine. What was armed to happen once stays
// so, but for none.
func (s *Simulated) fail(f machineFaults, none bool) {
	s.SetDead(f.dead)
	s.mu.Lock()
	s.noLink = f.noLink
	s.mu.Unlock()
	for _, d := range s.Disks {
		d.fail(f)
	}
	if f.hangs > 0 || none {
		s.HangAtRestart(f.hangs)
	}
	// What happens in mid-write happens to the first disk alone.
	switch d := s.Disks[0]; {
	case f.powerCut > 0:
		d.CutAfter(f.powerCut, func() { _ = s.PowerOff(context.Background()) })
	case f.reset > 0:
		d.CutAfter(f.reset, func() { _ = s.Reset(context.Background()) })
	case none:
		d.CutAfter(0, nil)
	}
}

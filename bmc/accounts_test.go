package bmc_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"recast/bmc"
	"recast/testenv"
)

const another bmc.Secret = "Another-Secret42"

// loginWith is one login, and what came of it.
func loginWith(t *testing.T, target bmc.Target, user string, password bmc.Secret) error {
	t.Helper()
	target.User, target.Password = user, password
	c, err := bmc.Dial(within(t, 20*time.Second), target)
	if err != nil {
		return err
	}
	defer c.Close(context.Background())
	_, err = c.Power(within(t, 20*time.Second))
	return err
}

func TestANewPasswordIsTheOnlyOneThatLogsIn(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target).(bmc.Accounts)
		for range 2 { // again does no harm
			if err := c.SetAccount(within(t, 20*time.Second), user, another); err != nil {
				t.Fatal(err)
			}
		}
		if err := loginWith(t, target, user, another); err != nil {
			t.Errorf("the new password: %v", err)
		}
		if err := loginWith(t, target, user, password); !errors.Is(err, bmc.ErrAuth) {
			t.Errorf("the old password: %v, want ErrAuth", err)
		}
		if n := b.Count("login"); n != 3 {
			t.Errorf("%d logins, want 3", n)
		}
	})
}

func TestAUserThatIsNotThereIsMadeAndMayDoAll(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(*testing.T) bmc.Target{
		"redfish": func(t *testing.T) bmc.Target {
			return redfishTarget(newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}}))
		},
		"redfish with slots": func(t *testing.T) bmc.Target {
			return redfishTarget(newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, AccountSlots: 4}))
		},
		"ipmi": func(t *testing.T) bmc.Target {
			return ipmiTarget(newIPMI(t, testenv.IPMIOptions{Machine: &testenv.SimMachine{}}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			target := start(t)
			c := dial(t, target).(bmc.Accounts)
			if err := c.SetAccount(within(t, 20*time.Second), "recast", another); err != nil {
				t.Fatal(err)
			}
			if err := loginWith(t, target, user, password); err != nil {
				t.Errorf("the account that made it: %v", err)
			}
			target.User, target.Password = "recast", another
			made := dial(t, target)
			if err := made.On(within(t, 20*time.Second)); err != nil {
				t.Errorf("it may not switch the power: %v", err)
			}
			if err := made.(bmc.Accounts).SetAccount(within(t, 20*time.Second), "recast", password); err != nil {
				t.Errorf("it may not change its password: %v", err)
			}
		})
	}
}

func TestAPasswordThatMustBeChangedIsGoodForThatAlone(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}, PasswordChangeRequired: true})
	target := redfishTarget(b)
	c := dial(t, target)
	if _, err := c.Power(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrChangePassword) {
		t.Errorf("power: %v, want ErrChangePassword", err)
	}
	if err := c.(bmc.Accounts).SetAccount(within(t, 20*time.Second), "recast", another); !errors.Is(err, bmc.ErrChangePassword) {
		t.Errorf("another account: %v, want ErrChangePassword", err)
	}
	if err := c.(bmc.Accounts).SetAccount(within(t, 20*time.Second), user, another); err != nil {
		t.Fatal(err)
	}
	if err := loginWith(t, target, user, another); err != nil {
		t.Error(err)
	}
	if n := b.Count("login"); n != 2 {
		t.Errorf("%d logins, want 2", n)
	}
}

func TestALostAnswerLeavesTheNewPasswordUnknown(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target).(bmc.Accounts)
		b.SetFaults(func(f *testenv.BMCFaults) { f.LoseEveryReply, f.RejectAfter = true, true })
		err := c.SetAccount(within(t, 20*time.Second), user, another)
		if err == nil {
			t.Fatal("done, of which nothing was heard")
		}
		b.SetFaults(func(f *testenv.BMCFaults) { *f = testenv.BMCFaults{} })
		if err := loginWith(t, target, user, another); err != nil {
			t.Errorf("it was executed: %v", err)
		}
	})
}

func TestNewPasswordsDifferAndFitEveryBMC(t *testing.T) {
	t.Parallel()
	seen := map[bmc.Secret]bool{}
	for range 100 {
		p := bmc.NewPassword()
		if len(p) != 16 || seen[p] {
			t.Fatalf("%q", p.Reveal())
		}
		seen[p] = true
	}
	for _, bad := range []string{"", "a user", "a:b", "seventeen-letters", "ünicode"} {
		if bmc.CheckUser(bad) == nil {
			t.Errorf("user %q is taken", bad)
		}
	}
	if err := bmc.CheckUser("sixteen-letters1"); err != nil {
		t.Error(err)
	}
}

func TestSensorsTellNumbersAndWhatIsNotThere(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, _ front, target bmc.Target) {
		read := func() map[string]bmc.Sensor {
			t.Helper()
			found, err := dial(t, target).(bmc.SensorReader).Sensors(within(t, 20*time.Second))
			if err != nil || len(found.Holes) > 0 {
				t.Fatalf("%+v, %v", found, err)
			}
			byKind := map[string]bmc.Sensor{}
			for _, s := range found.Sensors {
				if _, ok := byKind[s.Kind]; !ok {
					byKind[s.Kind] = s
				}
			}
			return byKind
		}
		off := read()
		if err := machine.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		on := read()
		for kind, unit := range map[string]string{"temperature": "°C", "fan": "rpm", "voltage": "V"} {
			s := on[kind]
			if s.Reading == nil || *s.Reading <= 0 || s.Unit != unit || s.State != "ok" || s.Name == "" {
				t.Errorf("%s: %+v", kind, s)
			}
		}
		if s := on["voltage"]; s.Reading != nil && (*s.Reading < 11 || *s.Reading > 13) {
			t.Errorf("12 V: %v", *s.Reading)
		}
		if s := off["fan"]; s.Name == "" || s.Reading != nil && *s.Reading != 0 {
			t.Errorf("a fan of a machine that is off: %+v", s)
		}
	})
}

func TestAResetOfTheBMCIsSeenAndItsMachineGoesOn(t *testing.T) {
	eachKind(t, func(t *testing.T, machine *testenv.SimMachine, b front, target bmc.Target) {
		if err := machine.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.SetFaults(func(f *testenv.BMCFaults) { f.Away = 300 * time.Millisecond })
		c := dial(t, target)
		if err := c.(bmc.Resetter).ResetBMC(within(t, 40*time.Second)); err != nil {
			t.Fatal(err)
		}
		if n := b.Done("restart-bmc"); n != 1 {
			t.Errorf("%d restarts, want 1", n)
		}
		if state, err := c.Power(within(t, 20*time.Second)); err != nil || state != bmc.PowerOn || !machine.Powered() {
			t.Errorf("power %s, %v after it", state, err)
		}
		if n := b.Count("login"); n > 2 {
			t.Errorf("%d logins, want 2", n)
		}
	})
}

func TestAResetThatDoesNotHappenIsNotDone(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		b.SetFaults(func(f *testenv.BMCFaults) { f.IgnoreRestart = true })
		c := dial(t, target)
		if err := c.(bmc.Resetter).ResetBMC(within(t, 40*time.Second)); !errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("%v, want ErrUnverified", err)
		}
		if _, err := c.Power(within(t, 20*time.Second)); err != nil {
			t.Error(err)
		}
	})
}

func TestANewCertificateAfterAResetStops(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{},
		Faults: testenv.BMCFaults{Away: 100 * time.Millisecond, Redfish: testenv.RedfishFaults{NewCertificateAtRestart: true}}})
	c := dial(t, redfishTarget(b))
	if err := c.(bmc.Resetter).ResetBMC(within(t, 40*time.Second)); !errors.Is(err, bmc.ErrPin) {
		t.Errorf("%v, want ErrPin", err)
	}
}

func TestAResetThatNobodyAnsweredIsNotSaidToBeAccepted(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		c := dial(t, target)
		b.SetFaults(func(f *testenv.BMCFaults) { f.Hang = true })
		err := c.(bmc.Resetter).ResetBMC(within(t, 5*time.Second))
		if bmc.OutcomeOf(err) != bmc.Unknown || errors.Is(err, bmc.ErrUnverified) {
			t.Errorf("%v, want that it is not known", err)
		}
	})
}

func TestSensorsOfAMuteBMCAreAnError(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	c := dial(t, redfishTarget(b))
	b.SetFaults(func(f *testenv.BMCFaults) { f.Busy = true })
	if found, err := c.(bmc.SensorReader).Sensors(within(t, 20*time.Second)); !errors.Is(err, bmc.ErrBusy) {
		t.Errorf("%+v, %v; want ErrBusy", found, err)
	}
}

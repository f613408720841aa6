package bmc

import (
	"context"
	"fmt"
)

// knows judges a login; the lock is held.
func (f *Fake) knows(t Target) error {
	if password, ok := f.Passwords[t.User]; f.Passwords != nil && (!ok || password != t.Password.Reveal()) {
		return fmt.Errorf("log in to %s: %w", t.URL, ErrAuth)
	}
	return nil
}

// Password that a user has now; "" for nobody.
func (f *Fake) Password(user string) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.Passwords[user]
}

func (f *Fake) SetAccount(ctx context.Context, user string, password Secret) error {
	return f.call(ctx, "set-account", NextBoot{}, func(Fault) (func(), error) {
		if f.Passwords == nil {
			f.Passwords = map[string]string{}
		}
		f.Passwords[user] = password.Reveal()
		return nil, nil
	})
}

func (f *Fake) ResetBMC(ctx context.Context) error {
	return f.call(ctx, "reset-bmc", NextBoot{}, func(Fault) (func(), error) { return nil, nil })
}

func (f *Fake) Sensors(ctx context.Context) (all Sensors, err error) {
	err = f.call(ctx, "sensors", NextBoot{}, func(Fault) (func(), error) {
		all.Sensors = append([]Sensor(nil), f.Readings...)
		return nil, nil
	})
	return all, err
}

func (s *fakeSession) SetAccount(ctx context.Context, user string, password Secret) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.SetAccount(ctx, user, password)
}

func (s *fakeSession) ResetBMC(ctx context.Context) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.ResetBMC(ctx)
}

func (s *fakeSession) Sensors(ctx context.Context) (Sensors, error) {
	if err := s.open(); err != nil {
		return Sensors{}, err
	}
	return s.Fake.Sensors(ctx)
}

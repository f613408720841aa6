package bmc

import (
	"context"
	"fmt"
)

// Facts of a Fake are none: it has no ways of its own.
func (f *Fake) Facts() Facts { return Facts{} }

// Medium is the URI in the virtual drive, whatever the fault says; "" none.
func (f *Fake) Medium() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.medium
}

func (f *Fake) Media(ctx context.Context) (drives []Drive, err error) {
	err = f.media(ctx, "media", func(Fault) error {
		drives = []Drive{{ID: "Cd", Types: []string{"CD", "DVD"}, Inserted: f.medium != "", Image: f.medium}}
		return nil
	})
	return drives, err
}

func (f *Fake) InsertMedia(ctx context.Context, uri string) error {
	if err := validMedium(uri); err != nil {
		return err
	}
	return f.media(ctx, "insert", func(fault Fault) error {
		if fault == FaultIgnoreMedia {
			return fmt.Errorf("insert virtual media: %w: the drive is empty", ErrUnverified)
		}
		f.medium = uri
		return nil
	})
}

func (f *Fake) EjectMedia(ctx context.Context) error {
	return f.media(ctx, "eject", func(fault Fault) error {
		if fault == FaultIgnoreMedia && f.medium != "" {
			return fmt.Errorf("eject virtual media: %w: the drive is full", ErrUnverified)
		}
		f.medium = ""
		return nil
	})
}

func (f *Fake) media(ctx context.Context, verb string, do func(Fault) error) error {
	return f.call(ctx, verb, NextBoot{}, func(fault Fault) (func(), error) {
		if f.NoMedia {
			return nil, fmt.Errorf("%s: %w", verb, ErrUnsupported)
		}
		return nil, do(fault)
	})
}

func (f *Fake) Identity(ctx context.Context) (id Identity, err error) {
	err = f.call(ctx, "identity", NextBoot{}, func(Fault) (func(), error) {
		id = f.Told.Identity
		return nil, nil
	})
	return id, err
}

func (f *Fake) Inventory(ctx context.Context) (all Inventory, err error) {
	err = f.call(ctx, "inventory", NextBoot{}, func(Fault) (func(), error) {
		all = f.Told
		return nil, nil
	})
	return all, err
}

// A session of a Fake ends with its Close for these verbs too.

func (s *fakeSession) Media(ctx context.Context) ([]Drive, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	return s.Fake.Media(ctx)
}

func (s *fakeSession) InsertMedia(ctx context.Context, uri string) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.InsertMedia(ctx, uri)
}

func (s *fakeSession) EjectMedia(ctx context.Context) error {
	if err := s.open(); err != nil {
		return err
	}
	return s.Fake.EjectMedia(ctx)
}

func (s *fakeSession) Identity(ctx context.Context) (Identity, error) {
	if err := s.open(); err != nil {
		return Identity{}, err
	}
	return s.Fake.Identity(ctx)
}

func (s *fakeSession) Inventory(ctx context.Context) (Inventory, error) {
	if err := s.open(); err != nil {
		return Inventory{}, err
	}
	return s.Fake.Inventory(ctx)
}

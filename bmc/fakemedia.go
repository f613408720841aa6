package bmc

import (
	"context"
	"fmt"
	"slices"
	"strconv"
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

func (f *Fake) Screenshot(ctx context.Context) (image []byte, err error) {
	err = f.call(ctx, "screenshot", NextBoot{}, func(Fault) (func(), error) {
		if image = f.Picture; image == nil {
			return nil, fmt.Errorf("take a screenshot: %w", ErrUnsupported)
		}
		return nil, nil
	})
	return image, err
}

// AddEvent writes an entry into the event log.
func (f *Fake) AddEvent(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	e.ID = strconv.Itoa(len(f.log) + 1)
	f.log = append(f.log, e)
}

// ClearLog empties the event log.
func (f *Fake) ClearLog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

func (f *Fake) Events(ctx context.Context, cursor string) (found Events, err error) {
	at, err := parseCursor(cursor)
	if err != nil {
		return found, err
	}
	err = f.call(ctx, "events", NextBoot{}, func(Fault) (func(), error) {
		from := 0
		if at.id != "" {
			i := slices.IndexFunc(f.log, func(e Event) bool { return e.ID == at.id && sumOf(e.Text) == at.sum })
			from, found.Lost = i+1, i < 0
		}
		found.Events = slices.Clone(f.log[from:])
		if !found.Lost {
			found.Cursor = cursor
		}
		if n := len(f.log); n > 0 {
			found.Cursor = cursorAt{f.log[n-1].ID, sumOf(f.log[n-1].Text)}.String()
		}
		return nil, nil
	})
	return found, err
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

func (s *fakeSession) Events(ctx context.Context, cursor string) (Events, error) {
	if err := s.open(); err != nil {
		return Events{}, err
	}
	return s.Fake.Events(ctx, cursor)
}

func (s *fakeSession) Screenshot(ctx context.Context) ([]byte, error) {
	if err := s.open(); err != nil {
		return nil, err
	}
	return s.Fake.Screenshot(ctx)
}

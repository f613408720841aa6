package bmc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"
)

// mediaTimeout is how long a medium is awaited in its drive, or gone from it.
// BMCs open the image before they show it, and show it for seconds after it left.
const mediaTimeout = 60 * time.Second

// Drive is one virtual drive of a BMC.
type Drive struct {
	ID       string   `json:"id"`
	Types    []string `json:"types,omitempty"` // CD, DVD, Floppy, USBStick
	Inserted bool     `json:"inserted"`
	Image    string   `json:"image,omitempty"` // URI of what is in it, as the BMC shows it
}

// Media is a Client with a virtual CD drive that reads an image over HTTP. Those
// of Dial and Fake are; where the BMC has none, and over IPMI, the verbs return
// ErrUnsupported. All are safe to repeat and return nil only after the drive was
// read back.
type Media interface {
	Media(ctx context.Context) ([]Drive, error)
	// InsertMedia puts the image at an http or https URI into the virtual CD drive,
	// in place of whatever is in it.
	InsertMedia(ctx context.Context, uri string) error
	// EjectMedia empties every virtual CD drive. Some BMCs refuse it, or hang the
	// machine, while a system runs from the medium: switch it off before.
	EjectMedia(ctx context.Context) error
}

var (
	_ Media = (*session)(nil)
	_ Media = (*Fake)(nil)
)

func validMedium(uri string) error {
	if u, err := url.Parse(uri); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return errors.New("insert virtual media: want a URI http://… or https://…, without a password")
	}
	return nil
}

func (s *session) redfish(verb string) (*redfishDriver, error) {
	d, ok := s.seen.driver.(*redfishDriver)
	if !ok {
		return nil, fmt.Errorf("%s: %w: IPMI has no virtual media", verb, ErrUnsupported)
	}
	return d, nil
}

func (s *session) Media(ctx context.Context) ([]Drive, error) {
	const verb = "read virtual media"
	d, err := s.redfish(verb)
	if err != nil {
		return nil, err
	}
	found, err := s.drives(ctx, verb, d)
	drives := make([]Drive, 0, len(found))
	for _, f := range found {
		drives = append(drives, Drive{ID: f.id, Types: f.types, Inserted: f.full(), Image: f.image})
	}
	return drives, err
}

func (s *session) drives(ctx context.Context, verb string, d *redfishDriver) (found []redfishDrive, err error) {
	err = s.call(ctx, verb, func(ctx context.Context) (err error) {
		found, err = d.drives(ctx)
		return err
	})
	return found, err
}

func (s *session) InsertMedia(ctx context.Context, uri string) error {
	const verb = "insert virtual media"
	if err := validMedium(uri); err != nil {
		return err
	}
	d, err := s.redfish(verb)
	if err != nil {
		return err
	}
	found, err := s.drives(ctx, verb, d)
	if err != nil {
		return err
	}
	drive, ok := chooseDrive(found, uri, d.facts.get().Drive)
	if !ok {
		return fmt.Errorf("%s: %w: no virtual CD drive", verb, ErrUnsupported)
	}
	if drive.holds(uri) {
		return nil
	}
	if drive.full() {
		if err := s.eject(ctx, verb, d, drive); err != nil {
			return err
		}
	}
	facts := d.facts.get()
	forms := insertForms(drive, facts.InsertForm, quirksOf(facts.Vendor, facts.Model, facts.Firmware).insert)
	return s.try(ctx, verb, d, drive, forms, uri, func(now redfishDrive) string {
		switch {
		case now.holds(uri), now.full() && now.image == "" && now.name == "": // it was empty before
			return ""
		case now.full():
			return "the drive shows another image"
		}
		return "the drive is empty"
	}, func(f *Facts, form string) { f.Drive, f.InsertForm = drive.uri, form })
}

func (s *session) EjectMedia(ctx context.Context) error {
	const verb = "eject virtual media"
	d, err := s.redfish(verb)
	if err != nil {
		return err
	}
	found, err := s.drives(ctx, verb, d)
	if err != nil {
		return err
	}
	for _, drive := range found {
		if drive.cd() && drive.full() {
			if err := s.eject(ctx, verb, d, drive); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *session) eject(ctx context.Context, verb string, d *redfishDriver, drive redfishDrive) error {
	return s.try(ctx, verb, d, drive, ejectForms(drive, d.facts.get().EjectForm), "", func(now redfishDrive) string {
		if now.full() {
			return "the drive is not empty"
		}
		return ""
	}, func(f *Facts, form string) { f.EjectForm = form })
}

// try sends the forms of one change until the BMC takes one, the next only after
// a refusal and a look. Once one was taken, or nobody knows, only looking is left.
func (s *session) try(ctx context.Context, verb string, d *redfishDriver, drive redfishDrive, forms []mediaForm, uri string,
	other func(redfishDrive) string, learn func(*Facts, string)) error {
	var refused error
	for _, form := range forms {
		actErr := s.call(ctx, verb, func(ctx context.Context) error { return d.change(ctx, drive, form, uri) })
		err := s.verify(ctx, verb, mediaTimeout, actErr, func(ctx context.Context) (string, error) {
			var now redfishDrive
			err := s.call(ctx, verb, func(ctx context.Context) (err error) {
				now, err = d.drive(ctx, drive.uri)
				return err
			})
			if err != nil {
				return "", err
			}
			return other(now), nil
		})
		if err == nil {
			d.facts.learn(func(f *Facts) { learn(f, form.name) })
			return nil
		}
		if !payloadRefused(actErr) || imageRefused(actErr) {
			return err
		}
		if refused == nil {
			refused = err // the form of the specification says most
		}
	}
	return refused
}

// imageRefused: the BMC could not read the image; another form makes no difference.
func imageRefused(err error) bool {
	var answer *AnswerError
	if !errors.As(err, &answer) {
		return false
	}
	_, id, _ := strings.Cut(plainMessageID(answer.Code), ".")
	return slices.Contains([]string{"ResourceMissingAtURI", "CouldNotEstablishConnection", "SourceDoesNotSupportProtocol",
		"ResourceAtUriInUnknownFormat", "AccessDenied", "ResourceAtUriUnauthorized"}, id)
}

// full reports whether a medium is in the drive.
func (d redfishDrive) full() bool {
	if d.inserted != nil {
		return *d.inserted
	}
	return d.image != ""
}

// holds reports whether that image is in the drive. Some show its name alone.
func (d redfishDrive) holds(uri string) bool {
	return d.full() && (d.image == uri || d.image == "" && d.name != "" && d.name == path.Base(uri))
}

// cd reports whether the firmware sees a CD drive. One that does not say is taken
// for what it is called.
func (d redfishDrive) cd() bool {
	for _, t := range d.types {
		if t == "CD" || t == "DVD" {
			return true
		}
	}
	name := strings.ToLower(path.Base(d.uri))
	return len(d.types) == 0 && (strings.Contains(name, "cd") || strings.Contains(name, "dvd"))
}

// chooseDrive prefers the CD drive that holds the image, then the one that took one before,
// then the first that has an action for it, then the first, which is the system's own
// where it has some.
func chooseDrive(found []redfishDrive, uri, learned string) (redfishDrive, bool) {
	best, rank := redfishDrive{}, 0
	for _, d := range found {
		r := 1
		switch {
		case !d.cd():
			r = 0
		case d.holds(uri):
			r = 4
		case d.uri == learned:
			r = 3
		case d.insert != "":
			r = 2
		}
		if r > rank {
			best, rank = d, r
		}
	}
	return best, rank > 0
}

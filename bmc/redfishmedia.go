package bmc

import (
	"context"
	"net/http"
	"net/url"
	"path"
	"slices"
)

// redfishDrive is one VirtualMedia resource.
type redfishDrive struct {
	uri, etag, id string
	types         []string
	inserted      *bool // nil: it does not say
	image, name   string
	insert, eject string              // where the actions are posted; "" none
	info          string              // where the parameters of the insertion are told
	told          bool                // they were
	needed        []string            // parameters beside the image
	allowed       map[string][]string // values of parameters
}

// mediaForm is a way to ask for a change of a drive; the name is what is
// remembered of it.
type mediaForm struct {
	name   string
	patch  bool     // instead of the action
	params []string // beside the image
}

var (
	insertActions = []mediaForm{
		{name: "insert", params: []string{"Inserted", "WriteProtected"}},
		{name: "image"}, // some reject these two, which are the default anyway
		{name: "protocol", params: []string{"TransferProtocolType"}},
		{name: "protocol-method", params: []string{"TransferProtocolType", "TransferMethod"}},
		{name: "user", params: []string{"UserName", "Password"}},
		{name: "user-protocol-method", params: []string{"UserName", "Password", "TransferProtocolType", "TransferMethod"}},
	}
	insertPatches = []mediaForm{
		{name: "patch", patch: true, params: []string{"Inserted"}},
		{name: "patch-image", patch: true},
		{name: "patch-protocol", patch: true, params: []string{"Inserted", "TransferProtocolType"}},
	}
	ejectPatches = []mediaForm{
		{name: "patch", patch: true, params: []string{"Inserted"}},
		{name: "patch-image", patch: true},
	}
)

// insertForms are the forms of an insertion to try, in their order: what was
// learned, what the BMC says that it wants, what the table knows, and the rest.
func insertForms(d redfishDrive, learned, known string) []mediaForm {
	var forms []mediaForm
	if d.insert != "" {
		if d.told {
			forms = append(forms, mediaForm{name: "as-told", params: d.needed})
		}
		forms = append(forms, insertActions...)
	}
	forms = append(forms, insertPatches...)
	return firstForm(firstForm(forms, known, d.told), learned, false)
}

func ejectForms(d redfishDrive, learned string) []mediaForm {
	var forms []mediaForm
	if d.eject != "" {
		forms = append(forms, mediaForm{name: "eject"})
	}
	return firstForm(append(forms, ejectPatches...), learned, false)
}

// firstForm moves the form with that name to the front, or behind the first one.
func firstForm(forms []mediaForm, name string, second bool) []mediaForm {
	i := slices.IndexFunc(forms, func(f mediaForm) bool { return f.name == name })
	if i < 0 {
		return forms
	}
	to := 0
	if second {
		to = min(1, i)
	}
	form := forms[i]
	return slices.Insert(slices.Delete(slices.Clone(forms), i, i+1), to, form)
}

// payload is what a form sends; no uri ejects.
func (f mediaForm) payload(d redfishDrive, uri string) map[string]any {
	body := map[string]any{}
	if uri != "" || f.patch {
		body["Image"] = nil
	}
	protocol := "HTTP"
	if u, err := url.Parse(uri); err == nil && u.Scheme == "https" {
		protocol = "HTTPS"
	}
	if uri != "" {
		body["Image"] = uri
	}
	for _, p := range f.params {
		switch p {
		case "Inserted":
			body[p] = uri != ""
		case "WriteProtected":
			body[p] = true
		case "TransferProtocolType":
			body[p] = protocol
		case "TransferMethod":
			body[p] = "Stream"
		case "UserName", "Password":
			body[p] = "none" // wanted, and not used: the image asks for none
		case "MediaType":
			body[p] = "CD"
			if v := d.allowed[p]; len(v) > 0 && !slices.Contains(v, "CD") {
				body[p] = v[0]
			}
		}
	}
	return body
}

// change sends one form. Nothing else is tried here.
func (d *redfishDriver) change(ctx context.Context, drive redfishDrive, form mediaForm, uri string) error {
	body := form.payload(drive, uri)
	return d.again(ctx, func() error {
		switch {
		case form.patch:
			return d.patch(ctx, drive.uri, drive.etag, body)
		case uri == "":
			return d.write(ctx, http.MethodPost, drive.eject, "", body)
		}
		return d.write(ctx, http.MethodPost, drive.insert, "", body)
	})
}

// drives finds the virtual drives: Dell has them under the system, most under
// the manager, some under both. The system's come first.
func (d *redfishDriver) drives(ctx context.Context) (found []redfishDrive, err error) {
	err = d.again(ctx, func() error {
		found = nil
		system, managers, err := d.owners(ctx)
		if err != nil {
			return err
		}
		places := []string{system.Media.ID}
		for _, m := range managers {
			places = append(places, m.Media.ID)
		}
		seen := map[string]bool{}
		for _, at := range places {
			uris, err := d.members(ctx, at)
			if err != nil {
				return err
			}
			for _, uri := range uris {
				if seen[uri] {
					continue
				}
				seen[uri] = true
				drive, err := d.readDrive(ctx, uri)
				if gone(err) {
					continue // some list what needs a licence
				}
				if err != nil {
					return err
				}
				if drive.info != "" && drive.cd() {
					d.readParameters(ctx, &drive)
				}
				found = append(found, drive)
			}
		}
		return nil
	})
	return found, err
}

// drive reads one of them again.
func (d *redfishDriver) drive(ctx context.Context, uri string) (drive redfishDrive, err error) {
	err = d.again(ctx, func() error {
		drive, err = d.readDrive(ctx, uri)
		return err
	})
	return drive, err
}

// redfishAction is an action of a resource, with what it says of its parameters.
type redfishAction struct {
	Target string   `json:"target"`
	Info   string   `json:"@Redfish.ActionInfo"`
	Media  []string `json:"MediaType@Redfish.AllowableValues"`
}

func (d *redfishDriver) readDrive(ctx context.Context, uri string) (redfishDrive, error) {
	var r struct {
		ETag     string   `json:"@odata.etag"`
		ID       text     `json:"Id"`
		Types    []string `json:"MediaTypes"`
		Inserted *bool    `json:"Inserted"`
		Image    string   `json:"Image"`
		Name     string   `json:"ImageName"`
		Actions  struct {
			Insert redfishAction `json:"#VirtualMedia.InsertMedia"`
			Eject  redfishAction `json:"#VirtualMedia.EjectMedia"`
		} `json:"Actions"`
	}
	header, err := d.get(ctx, uri, &r)
	if err != nil {
		return redfishDrive{}, err
	}
	drive := redfishDrive{
		uri: uri, etag: etagOf(header, r.ETag), id: string(r.ID), types: r.Types, inserted: r.Inserted,
		image: r.Image, name: r.Name, insert: d.local(r.Actions.Insert.Target), eject: d.local(r.Actions.Eject.Target),
		allowed: map[string][]string{"MediaType": r.Actions.Insert.Media},
	}
	if drive.id == "" {
		drive.id = path.Base(uri)
	}
	drive.info = d.local(r.Actions.Insert.Info)
	return drive, nil
}

// readParameters takes what an ActionInfo tells; one that cannot be read tells nothing.
func (d *redfishDriver) readParameters(ctx context.Context, drive *redfishDrive) {
	var r struct {
		Parameters []struct {
			Name     string   `json:"Name"`
			Required bool     `json:"Required"`
			Allowed  []string `json:"AllowableValues"`
		} `json:"Parameters"`
	}
	if _, err := d.get(ctx, drive.info, &r); err != nil || len(r.Parameters) == 0 {
		return
	}
	drive.told = true
	for _, p := range r.Parameters {
		if len(p.Allowed) > 0 {
			drive.allowed[p.Name] = p.Allowed
		}
		if p.Required && p.Name != "Image" {
			drive.needed = append(drive.needed, p.Name)
		}
	}
}

// members are the links of a collection; none where there is no such collection.
func (d *redfishDriver) members(ctx context.Context, at string) (uris []string, err error) {
	if uris, err = d.collection(ctx, at); gone(err) {
		err = nil
	}
	return uris, err
}

// collection is its links. One that lost its later pages meanwhile ends early.
func (d *redfishDriver) collection(ctx context.Context, at string) (uris []string, err error) {
	const pages = 32
	for page := range pages {
		if at = d.local(at); at == "" {
			return uris, nil
		}
		var c struct {
			Members []redfishLink `json:"Members"`
			Next    string        `json:"Members@odata.nextLink"`
		}
		if _, err := d.get(ctx, at, &c); gone(err) && page > 0 {
			return uris, nil
		} else if err != nil {
			return uris, err
		}
		for _, m := range c.Members {
			if uri := d.local(m.ID); uri != "" {
				uris = append(uris, uri)
			}
		}
		at = c.Next
	}
	return uris, nil
}

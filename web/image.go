package web

import (
	"errors"
	"net/http"

	"github.com/labstack/echo/v4"

	"recast/image"
	"recast/inventory"
)

// ImageSource names an image that the server fetches.
type ImageSource struct {
	Source string           `json:"source"`
	Digest inventory.Digest `json:"digest,omitempty"`
}

// ImageView is one image here, and what is built to make it of others.
type ImageView struct {
	image.Info
	Differences []image.Difference `json:"differences,omitempty"`
}

func (s *Server) imageRoutes() []route {
	return []route{
		show(apiRoot+"/images", scopeOperator, "Images here, and the differences between them.",
			func(echo.Context) ([]ImageView, error) {
				var all []ImageView
				for _, i := range s.Images.List() {
					all = append(all, ImageView{i, s.Images.Differences(i.Digest)})
				}
				return all, nil
			}),
		{method: http.MethodPost, path: apiRoot + "/images", scope: scopeOperator, stream: true,
			doc: "Ingest an image: the body's bytes, with ?digest= and ?source=; or an ImageSource as application/json.",
			in:  ImageSource{}, out: image.Info{}, handle: s.addImage},
		act(http.MethodDelete, apiRoot+"/images/:digest", "Remove an image that nothing refers to.", s.removeImage),
		{method: http.MethodPost, path: apiRoot + "/images/:digest/verify", scope: scopeOperator,
			doc: "Hash every byte of our copy.", out: image.Info{}, handle: s.verifyImage},
	}
}

// addImage streams: the body may be larger than memory.
func (s *Server) addImage(c echo.Context) error {
	ctx := c.Request().Context()
	o := image.AddOptions{MaxSize: s.ImageMaxSize, Accept: s.Engine.AcceptImage(ctx, who(c))}
	if c.Request().Header.Get(echo.HeaderContentType) == echo.MIMEApplicationJSON {
		c.Request().Body = http.MaxBytesReader(c.Response(), c.Request().Body, bodyLimit[scopeKnock])
		in, err := read[ImageSource](c)
		if err != nil {
			return err
		}
		o.Want = in.Digest
		info, err := s.Images.AddSource(ctx, in.Source, o)
		return reply(c, info, refuse(http.StatusUnprocessableEntity, err))
	}
	if q := c.QueryParam("digest"); q != "" {
		d, err := inventory.ParseDigest(q)
		if err != nil {
			return refuse(http.StatusBadRequest, err)
		}
		o.Want = d
	}
	o.Source = c.QueryParam("source")
	o.SourceSize = max(0, c.Request().ContentLength)
	info, err := s.Images.Add(ctx, c.Request().Body, o)
	return reply(c, info, refuse(http.StatusUnprocessableEntity, err))
}

// imageParam is the digest in the path.
func imageParam(c echo.Context) (inventory.Digest, error) {
	d, err := inventory.ParseDigest(c.Param("digest"))
	return d, refuse(http.StatusBadRequest, err)
}

func (s *Server) removeImage(c echo.Context) error {
	d, err := imageParam(c)
	if err != nil {
		return err
	}
	return s.Engine.RemoveImage(c.Request().Context(), d, who(c))
}

func (s *Server) verifyImage(c echo.Context) error {
	d, err := imageParam(c)
	if err != nil {
		return err
	}
	if err := s.Images.Verify(c.Request().Context(), d); err != nil && !errors.Is(err, image.ErrDamaged) {
		return err
	}
	info, err := s.Images.Info(d)
	return reply(c, info, err)
}

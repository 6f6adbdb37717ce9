# A -base image: the plain one asks for a packages.txt, which this project has no use for.
FROM astrocrpublic.azurecr.io/runtime:3.3-8-base

USER root
COPY requirements.txt .
RUN /usr/local/bin/install-python-dependencies
USER astro
COPY --chown=astro:0 . .

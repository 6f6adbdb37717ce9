# Use the -base variant: the plain image requires a packages.txt, and this project has none.
FROM astrocrpublic.azurecr.io/runtime:3.3-8-base

USER root
COPY requirements.txt .
RUN /usr/local/bin/install-python-dependencies
USER astro
COPY --chown=astro:0 . .
